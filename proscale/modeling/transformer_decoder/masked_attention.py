"""The masked-attention transformer decoder (Mask2Former, §3.2).

Each layer adds its branch to its input, with the norm after the sum (as published) or before the
branch (``pre_norm``).
"""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from proscale.modeling.attention import Attention
from proscale.modeling.head import TRANSFORMER_DECODER_REGISTRY
from proscale.modeling.mlp import MLP
from proscale.modeling.pixel_decoders.base import NUM_DECODER_LEVELS
from proscale.modeling.pixel_decoders.deformable_encoder import sine_position_encoding
from proscale.modeling.transformer_decoder.query_selection import (
    QuerySelection,
    RelativeCoordinates,
)
from proscale.ops.fused import to_tokens
from proscale.ops.mask_resize import QueryMasks


class SelfAttentionLayer(nn.Module):
    """Self-attention of the queries; positions are added to queries and keys, not to values."""

    def __init__(self, d_model: int, n_heads: int, *, pre_norm: bool):
        super().__init__()
        self.self_attn = Attention(d_model, n_heads)
        self.norm = nn.LayerNorm(d_model)
        self.pre_norm = pre_norm

    def forward(self, queries: Tensor, query_position: Tensor) -> Tensor:
        """``queries`` and ``query_position`` ``(B, Q, C)``; returns ``(B, Q, C)``."""
        content = self.norm(queries) if self.pre_norm else queries
        # q = k = x + position, v = x: positions are part of every layer's input (DETR, §A.3).
        placed = content + query_position
        queries = queries + self.self_attn(placed, placed, content)
        return queries if self.pre_norm else self.norm(queries)


class CrossAttentionLayer(nn.Module):
    """Masked attention of the queries to the tokens of one level (Mask2Former, §3.2.1)."""

    def __init__(self, d_model: int, n_heads: int, *, pre_norm: bool):
        super().__init__()
        self.multihead_attn = Attention(d_model, n_heads)
        self.norm = nn.LayerNorm(d_model)
        self.pre_norm = pre_norm

    def forward(
        self,
        queries: Tensor,
        query_position: Tensor,
        tokens: Tensor,
        token_position: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """``queries`` and their positions ``(B, Q, C)`` attend ``tokens`` ``(B, N, C)``, to whose
        keys ``token_position`` ``(N, C)`` is added, where ``mask`` ``(B, Q, N)`` is True."""
        content = self.norm(queries) if self.pre_norm else queries
        # X_l = softmax(M_(l-1) + Q_l K_lᵀ) V_l + X_(l-1) (Mask2Former, equation 2).
        queries = queries + self.multihead_attn(
            content + query_position, tokens + token_position, tokens, mask
        )
        return queries if self.pre_norm else self.norm(queries)


class FeedForwardLayer(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, d_model: int, d_ffn: int, *, pre_norm: bool):
        super().__init__()
        self.linear1 = nn.Linear(d_model, d_ffn)
        self.linear2 = nn.Linear(d_ffn, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.pre_norm = pre_norm
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, queries: Tensor) -> Tensor:
        """``(B, Q, C)`` to the same shape."""
        content = self.norm(queries) if self.pre_norm else queries
        # FFN(x) = W_2 relu(W_1 x), on a residual branch.
        queries = queries + self.linear2(self.linear1(content).relu())
        return queries if self.pre_norm else self.norm(queries)


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Learned queries look at the levels in turn, each where its last mask is, and predict.

    Args:
        in_channels: width of the pixel decoder's levels.
        num_classes: K, without “no object”.
        hidden_dim: width C of the queries.
        num_queries: Q.
        nheads, dim_feedforward: attention heads; width of the feed-forward networks.
        num_layers: layers; one more prediction is made.
        depth: layers that compute in evaluation mode, the first ones; None is all.
        pre_norm: norms before the branches rather than after the sums.
        mask_dim: channels of the mask features.
        enforce_input_project: project the levels even where ``in_channels == hidden_dim``.
        selected_queries: more queries, chosen from the levels' tokens, see
            :class:`~proscale.modeling.transformer_decoder.query_selection.QuerySelection`.
        test_selected_queries: how many in evaluation mode; None is as many.
        relative_coordinates: of pixels to the selected queries, for the masks, see
            :class:`~proscale.modeling.transformer_decoder.query_selection.RelativeCoordinates`.
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
        depth: int | None = None,
        selected_queries: int = 0,
        test_selected_queries: int | None = None,
        relative_coordinates: bool = False,
    ):
        super().__init__()
        if relative_coordinates and not selected_queries:
            raise ValueError("relative_coordinates is True: expected selected_queries from 1")
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
        self.set_depth(num_layers if depth is None else depth)
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
        # Further queries, from the levels' tokens.
        self.query_selection = None
        if selected_queries:
            self.query_selection = QuerySelection(
                hidden_dim, selected_queries, test_selected_queries or selected_queries
            )
        self.relative_coordinates = (
            RelativeCoordinates(hidden_dim) if relative_coordinates else None
        )
        # 1x1 convolutions only where widths differ, unless they are enforced.
        self.input_proj = nn.ModuleList(nn.Identity() for _ in range(NUM_DECODER_LEVELS))
        if in_channels != hidden_dim or enforce_input_project:
            for level in range(NUM_DECODER_LEVELS):
                self.input_proj[level] = nn.Conv2d(in_channels, hidden_dim, kernel_size=1)
                weight_init.c2_xavier_fill(self.input_proj[level])
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
            "depth": node.TEST.DEC_LAYERS - 1 if node.TEST.DEC_LAYERS else None,
            "selected_queries": node.SELECTED_QUERIES,
            "test_selected_queries": node.TEST.SELECTED_QUERIES or None,
            "relative_coordinates": node.RELATIVE_COORDINATES,
        }

    @property
    def test_queries(self) -> int:
        """Queries in evaluation mode, of an image with enough tokens."""
        selected = 0 if self.query_selection is None else self.query_selection.test_count
        return self.query_feat.num_embeddings + selected

    def set_depth(self, depth: int) -> None:
        """Compute the first ``depth`` layers alone in evaluation mode from now on.

        Every layer's prediction has losses of its own, so that any of them may be the last
        (RT-DETR, §4.4).

        Raises:
            ValueError: there are fewer layers.
        """
        if not 0 <= depth <= self.num_layers:
            raise ValueError(f"depth is {depth}: expected layers from 0 to {self.num_layers}")
        self.depth = depth

    def forward(
        self,
        levels: Sequence[Tensor],
        mask_features: Tensor,
        *,
        projection: nn.Conv2d | None = None,
        auxiliary: bool = True,
    ) -> dict:
        """Predict classes and masks.

        Args:
            levels: three maps ``(B, in_channels, H, W)``, coarse to fine.
            mask_features: ``(B, mask_dim, H, W)``; or, with ``projection``, the map that it takes.
            projection: the 1x1 convolution that makes the mask features.
            auxiliary: return the earlier predictions as well.

        Returns:
            ``pred_logits`` ``(B, Q, K + 1)``, “no object” last; ``mask_embed``
            ``(B, Q, mask_dim)``; ``pred_masks`` ``(B, Q, H, W)`` logits, the product of the
            latter and ``mask_features``; ``aux_outputs``, the same three of every earlier
            prediction in order, empty without ``auxiliary``; and ``mask_features``, or None where
            losses do not need them (:class:`~proscale.ops.mask_resize.QueryMasks`). With selected
            queries, which are the last ones, every prediction has their ``places`` ``(B, K, 2)`` as
            (x, y) in (0, 1), too.
        """
        batch = mask_features.shape[0]
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        # Keys and values: each level's tokens (B, H·W, C), and their positions (H·W, C). An
        # embedding tells levels apart, in keys and values; the sine encoding of places is added to
        # the keys alone (§3.2.2).
        channels = self.level_embed.weight.shape[1]
        tokens = [
            to_tokens(project(level)) + embedding
            for level, project, embedding in zip(
                levels, self.input_proj, self.level_embed.weight, strict=True
            )
        ]
        positions = [
            sine_position_encoding(*size, channels, device=mask_features.device) for size in sizes
        ]
        # The learned queries: content X_0 and position, (B, Q, C) each.
        queries = self.query_feat.weight.expand(batch, -1, -1)
        query_position = self.query_embed.weight.expand(batch, -1, -1)
        # Further ones from the tokens that are most likely to be objects.
        places = None
        if self.query_selection is not None:
            selected = self.query_selection(tokens, positions, sizes, self._classify)
            queries = torch.cat((queries, selected.content), dim=1)
            query_position = torch.cat((query_position, selected.position), dim=1)
            places = selected.places
        if self.relative_coordinates is not None:
            # The polynomial stands beside the mask features, not beside what they are made of.
            if projection is not None:
                mask_features, projection = projection(mask_features), None
            mask_features = self.relative_coordinates.extend_features(mask_features)
        masks = QueryMasks(mask_features, projection, sizes, every_layer=auxiliary)

        contents, embeddings = [], []
        for index in range(self.num_layers if self.training else self.depth):
            # Levels in turn, from the coarsest (round robin, §3.2.2).
            level = index % NUM_DECODER_LEVELS
            # The mask M_(l-1) that the previous layer predicts, from X_0 before the first one.
            contents.append(self.decoder_norm(queries))
            embeddings.append(self._embed(contents[-1], places, mask_features))
            look = masks.attention_mask(embeddings[-1], level)
            # Masked cross-attention first, then self-attention and feed-forward (§3.2.1, §3.2.3).
            queries = self.transformer_cross_attention_layers[index](
                queries, query_position, tokens[level], positions[level], look
            )
            queries = self.transformer_self_attention_layers[index](queries, query_position)
            queries = self.transformer_ffn_layers[index](queries)
        contents.append(self.decoder_norm(queries))
        embeddings.append(self._embed(contents[-1], places, mask_features))

        # Classes, and masks in one product, of the predictions that are wanted.
        if not auxiliary:
            contents, embeddings = contents[-1:], embeddings[-1:]
        *earlier, last = [
            {
                "pred_logits": self.class_embed(content),
                "mask_embed": embedding,
                "pred_masks": mask_logits,
            }
            | ({} if places is None else {"places": places})
            for content, embedding, mask_logits in zip(
                contents, embeddings, masks.predictions(embeddings), strict=True
            )
        ]
        return {**last, "aux_outputs": earlier, "mask_features": masks.features_of_losses}

    def _classify(self, queries: Tensor) -> Tensor:
        return self.class_embed(self.decoder_norm(queries))

    def _embed(self, content: Tensor, places: Tensor | None, features: Tensor) -> Tensor:
        """Mask embeddings of normalised queries ``(B, Q, C)``, of as many channels as
        ``features``."""
        embedding = self.mask_embed(content)
        if self.relative_coordinates is None:
            return embedding
        assert places is not None  # there are selected queries
        size = (features.shape[2], features.shape[3])
        return self.relative_coordinates.extend_embeddings(embedding, content, places, size)
