"""The deformable transformer encoder layer (Deformable DETR, §4.1) and what its tokens carry.

Token order everywhere: levels one after another, each level's cells row by row.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.modeling.position_encoding import sine_position_encoding
from proscale.ops import deformable_attention


class DeformableAttention(nn.Module):
    """Attention of every query to ``n_points`` places per head and level around its own place.

    Args:
        d_model: width of queries and values.
        n_levels, n_heads, n_points: levels, heads, and sampling points per head and level.
    """

    def __init__(self, d_model: int, n_levels: int, n_heads: int, n_points: int):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model is {d_model}: accepts multiples of n_heads, {n_heads}")
        self.n_levels, self.n_heads, self.n_points = n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Offsets start as rings: head m looks in direction m, point p at distance p."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.n_heads) * (2 * math.pi / self.n_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.n_points + 1)
        ring = directions[:, None, None, :] * distances[None, None, :, None]
        ring = ring.expand(self.n_heads, self.n_levels, self.n_points, 2)
        self.sampling_offsets.bias.copy_(ring.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        tokens: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attend ``tokens``.

        Args:
            query: ``(B, N, C)``.
            reference_points: ``(N, 2)`` as (x, y) in [0, 1].
            tokens: ``(B, S, C)``, S = ΣH·W of ``spatial_shapes``.
            spatial_shapes: ``(H, W)`` of each level.

        Returns:
            ``(B, N, C)``.
        """
        batch, queries, _ = query.shape
        grouped = (batch, queries, self.n_heads, self.n_levels)
        value = self.value_proj(tokens).view(batch, tokens.shape[1], self.n_heads, -1)
        # Offsets stay in float32 under autocast: in half precision a place in the map would be
        # rounded by up to a tenth of a cell.
        with torch.autocast(query.device.type, enabled=False):
            offsets = F.linear(
                query.float(), self.sampling_offsets.weight, self.sampling_offsets.bias
            )
        offsets = offsets.view(*grouped, self.n_points, 2)
        weights = self.attention_weights(query).view(*grouped[:3], -1).softmax(-1)
        cells = offsets.new_tensor([(width, height) for height, width in spatial_shapes])
        locations = reference_points[:, None, None, None] + offsets / cells[:, None]
        attended = deformable_attention(
            value, spatial_shapes, locations, weights.view(*grouped, self.n_points)
        )
        return self.output_proj(attended)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, both post-norm.

    Args:
        d_model: width of the tokens.
        d_ffn: width of the feed-forward network.
        dropout: applied to both branches' outputs and the feed-forward activations.
        n_levels, n_heads, n_points: see :class:`DeformableAttention`.
    """

    def __init__(
        self,
        d_model: int,
        d_ffn: int,
        dropout: float,
        *,
        n_levels: int,
        n_heads: int,
        n_points: int,
    ):
        super().__init__()
        self.self_attn = DeformableAttention(d_model, n_levels, n_heads, n_points)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, d_ffn)
        self.linear2 = nn.Linear(d_ffn, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """``tokens`` ``(B, S, C)``, ``position`` ``(S, C)``, ``reference_points`` ``(S, 2)``;
        returns ``(B, S, C)``."""
        attended = self.self_attn(tokens + position, reference_points, tokens, spatial_shapes)
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.dropout(self.linear1(tokens).relu())
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class TokenPlan(NamedTuple):
    """What the tokens of several levels carry besides their content."""

    spatial_shapes: list[tuple[int, int]]
    position: Tensor  #: ``(S, C)`` sine encoding plus the level's embedding
    reference_points: Tensor  #: ``(S, 2)`` the cells' centres as (x, y) in (0, 1)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each level."""
        return [height * width for height, width in self.spatial_shapes]

    def first(self, levels: int) -> "TokenPlan":
        """The plan of the first ``levels`` levels alone."""
        tokens = sum(self.lengths[:levels])
        return TokenPlan(
            self.spatial_shapes[:levels], self.position[:tokens], self.reference_points[:tokens]
        )


def plan_tokens(spatial_shapes: Sequence[tuple[int, int]], level_embed: Tensor) -> TokenPlan:
    """The plan of all levels of ``spatial_shapes``; ``level_embed`` is ``(L, C)``."""
    channels, device = level_embed.shape[1], level_embed.device
    position = [
        sine_position_encoding(height, width, channels, device=device) + embedding
        for (height, width), embedding in zip(spatial_shapes, level_embed, strict=True)
    ]
    centres = [_cell_centres(height, width, device) for height, width in spatial_shapes]
    return TokenPlan(list(spatial_shapes), torch.cat(position), torch.cat(centres))


def _cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1).view(-1, 2)


def to_tokens(feature: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(B, H·W, C)``."""
    return feature.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, spatial_shape: tuple[int, int]) -> Tensor:
    """``(B, H·W, C)`` to ``(B, C, H, W)``."""
    return tokens.transpose(1, 2).unflatten(2, spatial_shape)
