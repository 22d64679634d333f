"""Lite-M2F: the encoder of Lite DETR (Li et al., CVPR 2023) in Mask2Former's pixel decoder.

Three quarters of all tokens are those of the finest level. The encoder updates the high-level
tokens, of the coarsest levels, in every layer, and all tokens in the last layer of each block only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from proscale.modeling.pixel_decoders.base import PixelDecoder, PyramidArguments
from proscale.modeling.pixel_decoders.deformable_encoder import (
    DeformableAttention,
    DeformableEncoderLayer,
    EncoderLayerArguments,
    TokenPlan,
)
from proscale.ops import key_aware_deformable_attention
from proscale.ops.fused import feed_forward


@dataclass(frozen=True)
class InterleavingArguments:
    """How Lite DETR's encoder interleaves updates: “(a+1)×B” with a = num_layers / num_blocks."""

    num_layers: int  #: N, a multiple of ``num_blocks``
    num_blocks: int  #: B: each ends in a layer that updates all tokens
    num_high_levels: int  #: H: the coarsest levels, whose tokens every layer updates
    key_aware: bool  #: attention is key-aware
    small_ffn: bool  #: fine tokens have a feed-forward network of width C

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "InterleavingArguments":
        node = cfg.MODEL.LITE_DETR
        return cls(
            num_layers=node.NUM_LAYERS,
            num_blocks=node.NUM_BLOCKS,
            num_high_levels=node.NUM_HIGH_LEVELS,
            key_aware=node.KEY_AWARE,
            small_ffn=node.SMALL_FFN,
        )

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_blocks", "num_high_levels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected whole numbers from 1")
        if self.num_layers % self.num_blocks:
            raise ValueError(
                f"num_layers is {self.num_layers}: expected multiples of num_blocks, "
                f"{self.num_blocks}"
            )

    @property
    def updates_all(self) -> list[bool]:
        """Of each layer: whether it updates all tokens, as the last of its block."""
        per_block = self.num_layers // self.num_blocks
        return [number % per_block == 0 for number in range(1, self.num_layers + 1)]


class KeyAwareDeformableAttention(DeformableAttention):
    """Deformable attention whose weights depend on the sampled places (Lite DETR, key-aware
    deformable attention).

    The weights of :class:`DeformableAttention` are a linear function of the query alone, blind to
    the content of the places that they weigh.
    """

    def __init__(self, d_model: int, n_levels: int, n_heads: int, n_points: int):
        super().__init__(d_model, n_levels, n_heads, n_points)
        # Queries in place of weights.
        del self.attention_weights
        self.query_proj = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.query_proj.weight)
        nn.init.zeros_(self.query_proj.bias)

    def attend(self, query: Tensor, value: Tensor, locations: Tensor, plan: TokenPlan) -> Tensor:
        """See :meth:`DeformableAttention.attend`."""
        # A query for each head, (B, N, C) to (B, N, M, C / M).
        queries = self.query_proj(query).unflatten(2, (self.n_heads, -1))
        # Softmax(q · kᵀ / √(C / M)) · v, where the sampled values v are also the keys k.
        return key_aware_deformable_attention(queries, value, plan.spatial_shapes, locations)


class LightFeedForwardLayer(DeformableEncoderLayer):
    """A layer of all tokens in which those of fine levels, the many, have a small feed-forward
    network of width C; those of the ``high_levels`` coarsest levels have the ordinary one."""

    def __init__(
        self,
        args: EncoderLayerArguments,
        n_levels: int,
        attention: type[DeformableAttention],
        high_levels: int,
    ):
        super().__init__(args, n_levels, attention)
        self.high_levels = high_levels
        self.linear12 = nn.Linear(args.d_model, args.d_model)
        self.linear22 = nn.Linear(args.d_model, args.d_model)
        self.norm22 = nn.LayerNorm(args.d_model)
        nn.init.xavier_uniform_(self.linear12.weight)
        nn.init.xavier_uniform_(self.linear22.weight)

    def feed_forward(self, tokens: Tensor, plan: TokenPlan) -> Tensor:
        """See :meth:`DeformableEncoderLayer.feed_forward`."""
        high = sum(plan.lengths[: self.high_levels])
        fine = tokens[:, high:]
        # The same with weights of their own: norm(x + FFN(x)).
        update = feed_forward(fine, self.linear12, self.linear22, self.dropout)
        fine = self.norm22(fine + self.dropout(update))
        return torch.cat((super().feed_forward(tokens[:, :high], plan), fine), dim=1)


class InterleavedEncoder(nn.Module):
    """Blocks of deformable layers, the last of which updates all tokens, the others those of the
    high levels.

    Every layer's queries attend to the tokens of all levels, each from the centre of its own cell.
    """

    def __init__(self, args: EncoderLayerArguments, n_levels: int, order: InterleavingArguments):
        super().__init__()
        if not order.num_high_levels < n_levels:
            raise ValueError(
                f"num_high_levels is {order.num_high_levels}: expected fewer than the encoder's "
                f"{n_levels} levels"
            )
        self.high_levels, self.updates_all = order.num_high_levels, order.updates_all
        attention = KeyAwareDeformableAttention if order.key_aware else DeformableAttention
        self.layers = nn.ModuleList(
            LightFeedForwardLayer(args, n_levels, attention, order.num_high_levels)
            if last_of_block and order.small_ffn
            else DeformableEncoderLayer(args, n_levels, attention)
            for last_of_block in order.updates_all
        )

    def forward(self, levels: Sequence[Tensor], plan: TokenPlan) -> list[Tensor]:
        """``levels``: ``(B, H·W, C)`` each, coarse to fine; returns the same shapes."""
        # All tokens in one sequence (B, S, C), the high-level ones first.
        tokens = torch.cat(list(levels), dim=1)
        high = sum(plan.lengths[: self.high_levels])
        for layer, updates_all in zip(self.layers, self.updates_all, strict=True):
            if not updates_all:
                # High-level cross-scale fusion: few tokens ask. Keys and values are all tokens, of
                # which the fine ones are as the last block left them.
                updated = layer(tokens, plan, queries=high)
                tokens = torch.cat((updated, tokens[:, high:]), dim=1)
            else:
                # Low-level cross-scale fusion ends the block: the fine tokens catch up.
                tokens = layer(tokens, plan)
        return list(tokens.split(plan.lengths, dim=1))


@SEM_SEG_HEADS_REGISTRY.register()
class LiteDETRPixelDecoder(PixelDecoder):
    """Lite-M2F's pixel decoder: :class:`InterleavedEncoder` in place of Mask2Former's layers.

    Args:
        input_shape: channels and stride of the backbone's levels.
        order: layers, blocks and high levels; forms of attention and feed-forward network.
        mask_output_ops: see :class:`~proscale.modeling.pixel_decoders.base.PixelDecoder`.
        layer, pyramid: widths of each layer; levels and widths.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        order: InterleavingArguments,
        mask_output_ops: str,
        layer: EncoderLayerArguments,
        pyramid: PyramidArguments,
    ):
        n_levels = len(pyramid.transformer_in_features)
        super().__init__(
            input_shape,
            pyramid,
            encoder=InterleavedEncoder(layer, n_levels, order),
            mask_output_ops=mask_output_ops,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        return {
            "input_shape": input_shape,
            "order": InterleavingArguments.from_config(cfg),
            "mask_output_ops": cfg.MODEL.PROSCALE.MASK_OUTPUT_OPS,
            "layer": EncoderLayerArguments.from_config(cfg),
            "pyramid": PyramidArguments.from_config(cfg),
        }
