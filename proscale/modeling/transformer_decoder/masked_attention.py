"""The masked-attention transformer decoder (Mask2Former, §3.2)."""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.modeling.pixel_decoders.base import NUM_DECODER_LEVELS
from proscale.modeling.position_encoding import sine_position_encoding
from proscale.modeling.transformer_decoder.build import TRANSFORMER_DECODER_REGISTRY
from proscale.modeling.transformer_decoder.layers import (
    MLP,
    CrossAttentionLayer,
    FeedForwardLayer,
    SelfAttentionLayer,
)
from proscale.ops.tracing import is_recorded


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Learned queries look at the levels in turn, each where its last mask is, and predict.

    Args:
        in_channels: width of the pixel decoder's levels.
        num_classes: K, without “no object”.
        hidden_dim: width C of the queries.
        num_queries: Q.
        nheads: attention heads.
        dim_feedforward: width of the feed-forward networks.
        num_layers: layers; one more prediction is made.
        pre_norm: norms before the branches rather than after the sums.
        mask_dim: channels of the mask features.
        enforce_input_project: project the levels even where ``in_channels == hidden_dim``.

    Raises:
        ValueError: naming the configuration key, for values that no model can be built from.
    """

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        num_layers: int,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
    ):
        super().__init__()
        if num_layers < 0:
            raise ValueError(
                f"MODEL.MASK_FORMER.DEC_LAYERS is {num_layers + 1}: expected 1 (predictions of the "
                "learned queries alone), 2, 3, …"
            )
        if nheads < 1 or hidden_dim % nheads or hidden_dim % 4:
            raise ValueError(
                f"MODEL.MASK_FORMER.HIDDEN_DIM is {hidden_dim}: expected multiples of 4 and of "
                f"MODEL.MASK_FORMER.NHEADS, {nheads}"
            )
        if num_queries < 1:
            raise ValueError(
                f"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is {num_queries}: expected 1, 2, 3, …"
            )
        self.num_layers = num_layers
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, nheads, pre_norm=pre_norm) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, nheads, pre_norm=pre_norm) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, dim_feedforward, pre_norm=pre_norm)
            for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(NUM_DECODER_LEVELS, hidden_dim)
        project = in_channels != hidden_dim or enforce_input_project
        self.input_proj = nn.ModuleList(
            _projection(in_channels, hidden_dim) if project else nn.Identity()
            for _ in range(NUM_DECODER_LEVELS)
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, hidden_dim, mask_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int) -> dict:
        node = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": node.HIDDEN_DIM,
            "num_queries": node.NUM_OBJECT_QUERIES,
            "nheads": node.NHEADS,
            "dim_feedforward": node.DIM_FEEDFORWARD,
            # The prediction of the learned queries counts as a layer.
            "num_layers": node.DEC_LAYERS - 1,
            "pre_norm": node.PRE_NORM,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_project": node.ENFORCE_INPUT_PROJ,
        }

    def forward(
        self, levels: Sequence[Tensor], mask_features: Tensor, *, auxiliary: bool = True
    ) -> dict:
        """Predict classes and masks.

        Args:
            levels: three maps ``(B, in_channels, H, W)``, coarse to fine.
            mask_features: ``(B, mask_dim, H, W)``.
            auxiliary: return the earlier predictions as well. Without them no classes are predicted
                but the last ones, and masks to attend within only at the level's own size.

        Returns:
            ``pred_logits`` ``(B, Q, K + 1)``, “no object” last; ``mask_embed``
            ``(B, Q, mask_dim)``; ``pred_masks`` ``(B, Q, H, W)`` logits, the product of the
            latter and ``mask_features``; ``aux_outputs``, the same three of every earlier
            prediction in order, empty without ``auxiliary``; and with it, unless operators are
            recorded, ``mask_features`` as given.
        """
        batch = mask_features.shape[0]
        shapes = [level.shape[-2:] for level in levels]
        tokens, positions = self._tokens(levels)
        query_position = self.query_embed.weight.expand(batch, -1, -1)
        queries = self.query_feat.weight.expand(batch, -1, -1)
        # Whoever records operators, to count or to export them, sees each prediction where the
        # published model makes it. Else all are made together, and masks to attend within apart:
        # they are linear in the features, so that resizing these once resizes every layer's masks.
        one_by_one = auxiliary and is_recorded()
        guides = [
            mask_features if one_by_one else _resize(mask_features, shape) for shape in shapes
        ]

        contents, predictions = [], []
        for index in range(self.num_layers):
            level = index % NUM_DECODER_LEVELS
            content = self.decoder_norm(queries)
            if one_by_one:
                predictions.append(self._predict(content, mask_features))
                masks = predictions[-1]["pred_masks"]
            else:
                with torch.no_grad():
                    masks = self._masks(self.mask_embed(content), guides[level])
                if auxiliary:
                    contents.append(content)
            queries = self.transformer_cross_attention_layers[index](
                queries,
                query_position,
                tokens[level],
                positions[level],
                attention_mask(masks, shapes[level]),
            )
            queries = self.transformer_self_attention_layers[index](queries, query_position)
            queries = self.transformer_ffn_layers[index](queries)
        contents.append(self.decoder_norm(queries))
        together = {
            name: values.chunk(len(contents), dim=1)
            for name, values in self._predict(torch.cat(contents, dim=1), mask_features).items()
        }
        predictions += [
            {name: values[index] for name, values in together.items()}
            for index in range(len(contents))
        ]
        *earlier, last = predictions
        factor = {"mask_features": mask_features} if auxiliary and not one_by_one else {}
        return {**last, "aux_outputs": earlier, **factor}

    def _predict(self, content: Tensor, features: Tensor) -> dict[str, Tensor]:
        embedding = self.mask_embed(content)
        return {
            "pred_logits": self.class_embed(content),
            "mask_embed": embedding,
            "pred_masks": self._masks(embedding, features),
        }

    def _tokens(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        tokens, positions = [], []
        for level, project, embedding in zip(
            levels, self.input_proj, self.level_embed.weight, strict=True
        ):
            feature = project(level).flatten(2).transpose(1, 2)
            tokens.append(feature + embedding)
            positions.append(
                sine_position_encoding(*level.shape[-2:], feature.shape[2], device=level.device)
            )
        return tokens, positions

    @staticmethod
    def _masks(embedding: Tensor, features: Tensor) -> Tensor:
        # Whatever the features' layout, each mask's numbers come to lie side by side.
        return (embedding @ features.flatten(2)).unflatten(2, features.shape[-2:])


@torch.no_grad()
def attention_mask(masks: Tensor, spatial_shape: tuple[int, int]) -> Tensor:
    """Where each query may look: inside its mask, or everywhere if its mask is empty.

    Args:
        masks: ``(B, Q, H, W)`` logits.
        spatial_shape: (h, w) of the level that will be attended.

    Returns:
        ``(B, Q, h·w)`` bool.
    """
    inside = (_resize(masks, spatial_shape) >= 0).flatten(2)
    return inside | ~inside.any(dim=-1, keepdim=True)


def _resize(maps: Tensor, spatial_shape: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == spatial_shape:
        return maps
    return F.interpolate(maps, spatial_shape, mode="bilinear", align_corners=False)


def _projection(in_channels: int, hidden_dim: int) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, hidden_dim, kernel_size=1)
    weight_init.c2_xavier_fill(convolution)
    return convolution
