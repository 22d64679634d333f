"""The decoder layer of Deformable DETR and DINO: queries attend each other, then the tokens around
their reference points or boxes."""

from collections.abc import Sequence

from torch import Tensor, nn

from proscale.modeling.attention import Attention
from proscale.modeling.pixel_decoders.deformable_encoder import (
    DeformableAttention,
    EncoderLayerArguments,
    TokenPlan,
)


class DeformableDecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward network; post-norm (Deformable DETR,
    §4.1)."""

    def __init__(self, args: EncoderLayerArguments, n_levels: int):
        super().__init__()
        width = args.d_model
        # Numbered as in the published checkpoints: the first norm is that of the cross-attention.
        self.cross_attn = DeformableAttention(width, n_levels, args.n_heads, args.n_points)
        self.norm1 = nn.LayerNorm(width)
        self.self_attn = Attention(width, args.n_heads)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, args.d_ffn)
        self.linear2 = nn.Linear(args.d_ffn, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        references: Tensor,
        memory: Tensor,
        plan: TokenPlan,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Update the queries.

        Args:
            queries, position: content and position ``(B, Q, C)``.
            references: points ``(B, Q, 2)`` or boxes ``(B, Q, 4)``, fractions of the image.
            memory, plan: the encoder's output tokens ``(B, S, C)``, and their plan.
            mask: ``(Q, Q)``, True where a query may look at another one; None everywhere.

        Returns:
            ``(B, Q, C)``.
        """
        # Self-attention: positions are added to queries and keys, not to values.
        placed = queries + position
        looks = None if mask is None else mask[None]
        queries = self.norm2(queries + self.self_attn(placed, placed, queries, looks))
        # Cross-attention: a few places around each reference, on all levels.
        attended = self.cross_attn(queries + position, memory, plan, references)
        queries = self.norm1(queries + attended)
        # FFN(x) = W_2 relu(W_1 x).
        return self.norm3(queries + self.linear2(self.linear1(queries).relu()))


class DeformableDecoder(nn.Module):
    """The layers, and a norm where predictions are made from normed queries (DINO)."""

    norm: nn.Module
    ref_point_head: nn.Module  #: of DINO: positions of encoded boxes

    def __init__(self, layers: Sequence[DeformableDecoderLayer], norm: nn.Module | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if norm is not None:
            self.norm = norm
