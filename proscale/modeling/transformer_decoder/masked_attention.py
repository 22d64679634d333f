"""The masked-attention transformer decoder (Mask2Former, §3.2)."""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from proscale.modeling.head import TRANSFORMER_DECODER_REGISTRY
from proscale.modeling.pixel_decoders.base import NUM_DECODER_LEVELS
from proscale.modeling.tokens import sine_position_encoding, to_tokens
from proscale.modeling.transformer_decoder.layers import (
    MLP,
    CrossAttentionLayer,
    FeedForwardLayer,
    SelfAttentionLayer,
)
from proscale.ops.mask_resize import QueryMasks


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
        ValueError: for values that no model can be built from.
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
            raise ValueError(f"num_layers is {num_layers}: expected whole numbers from 0")
        if nheads < 1 or hidden_dim % nheads or hidden_dim % 4:
            raise ValueError(
                f"hidden_dim is {hidden_dim}: expected multiples of 4 and of nheads, {nheads}"
            )
        if num_queries < 1:
            raise ValueError(f"num_queries is {num_queries}: expected whole numbers from 1")
        # Three lists of blocks, as in the published checkpoints, not one list of layers.
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
        # Norm of the queries before every prediction, the learned ones' too.
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        # Learned content and positions of the queries (§3.2.3); an embedding for each level.
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(NUM_DECODER_LEVELS, hidden_dim)
        # 1x1 convolutions only where widths differ, unless they are enforced.
        project = in_channels != hidden_dim or enforce_input_project
        self.input_proj = nn.ModuleList(
            _projection(in_channels, hidden_dim) if project else nn.Identity()
            for _ in range(NUM_DECODER_LEVELS)
        )
        # Heads of the predictions: K classes and “no object”; embeddings of the masks.
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
            auxiliary: return the earlier predictions as well.

        Returns:
            ``pred_logits`` ``(B, Q, K + 1)``, “no object” last; ``mask_embed``
            ``(B, Q, mask_dim)``; ``pred_masks`` ``(B, Q, H, W)`` logits, the product of the
            latter and ``mask_features``; ``aux_outputs``, the same three of every earlier
            prediction in order, empty without ``auxiliary``; and ``mask_features`` as given, or
            None where each prediction was made by itself
            (:class:`~proscale.ops.mask_resize.QueryMasks`).
        """
        batch = mask_features.shape[0]
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        # Keys and values: each level's tokens (B, H·W, C), and their positions (H·W, C).
        tokens, positions = self._tokens(levels)
        # The learned queries: content X_0 and position, (B, Q, C) each.
        queries = self.query_feat.weight.expand(batch, -1, -1)
        query_position = self.query_embed.weight.expand(batch, -1, -1)
        masks = QueryMasks(mask_features, sizes, every_layer=auxiliary)

        contents, embeddings = [], []
        for index in range(self.num_layers):
            # Levels in turn, from the coarsest (round robin, §3.2.2).
            level = index % NUM_DECODER_LEVELS
            # The mask M_(l-1) that the previous layer predicts, from X_0 before the first one.
            contents.append(self.decoder_norm(queries))
            embeddings.append(self.mask_embed(contents[-1]))
            look = masks.attention_mask(embeddings[-1], level)
            # Masked cross-attention first, then self-attention and feed-forward (§3.2.1, §3.2.3).
            queries = self.transformer_cross_attention_layers[index](
                queries, query_position, tokens[level], positions[level], look
            )
            queries = self.transformer_self_attention_layers[index](queries, query_position)
            queries = self.transformer_ffn_layers[index](queries)
        contents.append(self.decoder_norm(queries))
        embeddings.append(self.mask_embed(contents[-1]))

        # Classes and masks of all predictions that are wanted, one product each.
        if not auxiliary:
            contents, embeddings = contents[-1:], embeddings[-1:]
        class_logits = self.class_embed(torch.cat(contents, dim=1)).chunk(len(contents), dim=1)
        *earlier, last = [
            {"pred_logits": classes, "mask_embed": embedding, "pred_masks": mask_logits}
            for classes, embedding, mask_logits in zip(
                class_logits, embeddings, masks.predictions(embeddings), strict=True
            )
        ]
        return {**last, "aux_outputs": earlier, "mask_features": masks.features_of_losses}

    def _tokens(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        tokens, positions = [], []
        for level, project, embedding in zip(
            levels, self.input_proj, self.level_embed.weight, strict=True
        ):
            feature = to_tokens(project(level))  # (B, C, H, W) to (B, H·W, C)
            # The level's embedding tells levels apart, in keys and values; the sine encoding of
            # places is added to the keys alone (§3.2.2).
            tokens.append(feature + embedding)
            _, _, height, width = level.shape
            positions.append(
                sine_position_encoding(height, width, feature.shape[2], device=level.device)
            )
        return tokens, positions


def _projection(in_channels: int, hidden_dim: int) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, hidden_dim, kernel_size=1)
    weight_init.c2_xavier_fill(convolution)
    return convolution
