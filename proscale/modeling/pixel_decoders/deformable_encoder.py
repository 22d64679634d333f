"""The deformable transformer encoder layer (Deformable DETR, §4.1) and what its tokens carry.

Token order everywhere: levels one after another, each level's cells row by row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.ops import deformable_attention
from proscale.ops.fused import feed_forward, softmax_small_dim
from proscale.ops.tracing import cached_table


@dataclass(frozen=True)
class EncoderLayerArguments:
    """Widths of a deformable encoder layer."""

    d_model: int  #: width of the tokens, a multiple of ``n_heads``
    d_ffn: int  #: width of the feed-forward network
    dropout: float  #: of both branches' outputs and the feed-forward activations
    n_heads: int
    n_points: int  #: sampling points per head and level

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "EncoderLayerArguments":
        head = cfg.MODEL.SEM_SEG_HEAD
        key = "DEFORMABLE_TRANSFORMER_ENCODER_"
        return cls(
            d_model=head.CONVS_DIM,
            d_ffn=head[key + "DIM_FEEDFORWARD"],
            dropout=cfg.MODEL.MASK_FORMER.DROPOUT,
            n_heads=head[key + "N_HEADS"] or cfg.MODEL.MASK_FORMER.NHEADS,
            n_points=head[key + "N_POINTS"],
        )

    def __post_init__(self) -> None:
        for name in ("d_ffn", "n_heads", "n_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected whole numbers from 1")
        if self.d_model % self.n_heads:
            raise ValueError(
                f"d_model is {self.d_model}: expected multiples of n_heads, {self.n_heads}"
            )


class DeformableAttention(nn.Module):
    """Attention of every query to ``n_points`` places per head and level around its own place."""

    def __init__(self, d_model: int, n_levels: int, n_heads: int, n_points: int):
        super().__init__()
        self.n_levels, self.n_heads, self.n_points = n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Offsets start as rings: head m looks in direction m, point p at distance p."""
        # Offsets do not depend on the query yet: the bias alone makes the ring.
        nn.init.zeros_(self.sampling_offsets.weight)
        # Directions scaled to the unit square's border, so that offsets are whole cells along it.
        angles = torch.arange(self.n_heads) * (2 * math.pi / self.n_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.n_points + 1)
        # (M, L, P, 2), the same on every level.
        ring = directions[:, None, None, :] * distances[None, None, :, None]
        ring = ring.expand(self.n_heads, self.n_levels, self.n_points, 2)
        self.sampling_offsets.bias.copy_(ring.flatten())
        # All points weigh the same, 1 / (L·P).
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, tokens: Tensor, plan: "TokenPlan") -> Tensor:
        """``query`` ``(B, N, C)``, of the first N of ``tokens``, attends them all, ``(B, S, C)``;
        they are those of ``plan``. Returns ``(B, N, C)``."""
        # Equation 3 of Deformable DETR: for each head m, output projection W_m of the sum over
        # levels l and points k of A_mlqk · W'_m x_l(φ_l(p_q) + Δp_mlqk).
        # W'_m x: (B, S, C) to (B, S, M, C / M).
        value = self.value_proj(tokens).unflatten(2, (self.n_heads, -1))
        attended = self.attend(query, value, self._sampling_locations(query, plan), plan)
        # Σ over heads of W_m: one linear layer on the heads side by side, (B, N, C).
        return self.output_proj(attended)

    def attend(self, query: Tensor, value: Tensor, locations: Tensor, plan: "TokenPlan") -> Tensor:
        """Weighted sums ``(B, N, C)`` of the values at ``locations`` ``(B, N, M, L, P, 2)``."""
        # A: softmax over the L·P points of a head together, (B, N, M, L·P).
        logits = self.attention_weights(query).unflatten(2, (self.n_heads, -1))
        weights = softmax_small_dim(logits).view(locations.shape[:-1])
        return deformable_attention(value, plan.spatial_shapes, locations, weights)

    def _sampling_locations(self, query: Tensor, plan: "TokenPlan") -> Tensor:
        """φ_l(p_q) + Δp_mlqk, ``(B, N, M, L, P, 2)`` as fractions of the map."""
        # Offsets Δp are linear in the query; cells of level l are 1 / (W_l, H_l) of the map.
        # Scaling the layer rather than its output saves a pass over the offsets.
        per_level = (self.n_heads, self.n_levels, self.n_points, 2)
        cell_size = plan.cell_sizes[:, None].expand(per_level).reshape(-1)
        # Float32 under autocast, too: in half precision a place in the map would be rounded by up
        # to a tenth of a cell.
        with torch.autocast(query.device.type, enabled=False):
            offsets = F.linear(
                query.float(),
                self.sampling_offsets.weight * cell_size[:, None],
                self.sampling_offsets.bias * cell_size,
            )
        # φ_l(p_q) is the same place on every level: coordinates are fractions of the map.
        centres = plan.reference_points[: query.shape[1], None]
        return (offsets.unflatten(2, (-1, 2)) + centres).unflatten(2, per_level[:-1])


class DeformableEncoderLayer(nn.Module):
    """Deformable attention to ``n_levels`` levels, then a feed-forward network; post-norm."""

    def __init__(
        self,
        args: EncoderLayerArguments,
        n_levels: int,
        attention: type[DeformableAttention] = DeformableAttention,
    ):
        super().__init__()
        self.self_attn = attention(args.d_model, n_levels, args.n_heads, args.n_points)
        self.norm1 = nn.LayerNorm(args.d_model)
        self.linear1 = nn.Linear(args.d_model, args.d_ffn)
        self.linear2 = nn.Linear(args.d_ffn, args.d_model)
        self.norm2 = nn.LayerNorm(args.d_model)
        self.dropout = nn.Dropout(args.dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, tokens: Tensor, plan: "TokenPlan", queries: int | None = None) -> Tensor:
        """``(B, S, C)`` to the same shape; or the first ``queries`` tokens alone, ``(B, N, C)``,
        after they attended to all."""
        # Positions are added to queries, not to values.
        asking = tokens[:, :queries]
        attended = self.self_attn(asking + plan.position[:queries], tokens, plan)
        # Post-norm: norms after the residual sums.
        return self.feed_forward(self.norm1(asking + self.dropout(attended)), plan)

    def feed_forward(self, tokens: Tensor, plan: "TokenPlan") -> Tensor:
        """The second half of the layer, ``(B, N, C)`` to the same shape: the first N tokens of
        ``plan``."""
        # FFN(x) = W_2 dropout(relu(W_1 x)), in blocks of tokens on a CPU.
        update = feed_forward(tokens, self.linear1, self.linear2, self.dropout)
        return self.norm2(tokens + self.dropout(update))


class TokenPlan(NamedTuple):
    """What the tokens of several levels carry besides their content."""

    spatial_shapes: list[tuple[int, int]]
    position: Tensor  #: ``(S, C)`` sine encoding plus the level's embedding
    reference_points: Tensor  #: ``(S, 2)`` the cells' centres as (x, y) in (0, 1)
    cell_sizes: Tensor  #: ``(L, 2)`` of each level, as (x, y) fractions of the map

    @property
    def lengths(self) -> list[int]:
        """Tokens of each level."""
        return [height * width for height, width in self.spatial_shapes]

    def first(self, levels: int) -> "TokenPlan":
        """The plan of the first ``levels`` levels alone."""
        # Tokens lie level by level, coarse to fine: the first levels are the first tokens.
        tokens = sum(self.lengths[:levels])
        return TokenPlan(
            self.spatial_shapes[:levels],
            self.position[:tokens],
            self.reference_points[:tokens],
            self.cell_sizes[:levels],
        )


def plan_tokens(spatial_shapes: Sequence[tuple[int, int]], level_embed: Tensor) -> TokenPlan:
    """The plan of all levels of ``spatial_shapes``; ``level_embed`` is ``(L, C)``."""
    channels, device = level_embed.shape[1], level_embed.device
    # The level's embedding tells levels apart, which places alone cannot (§4.1).
    position = [
        sine_position_encoding(height, width, channels, device=device) + embedding
        for (height, width), embedding in zip(spatial_shapes, level_embed, strict=True)
    ]
    shapes = tuple(spatial_shapes)
    return TokenPlan(
        list(spatial_shapes),
        torch.cat(position),
        _cell_centres(shapes, device),
        _cell_sizes(shapes, device),
    )


@cached_table
def sine_position_encoding(
    height: int,
    width: int,
    channels: int,
    *,
    device: torch.device | str = "cpu",
    temperature: float = 10000.0,
) -> Tensor:
    """Sine encoding of every cell of a map, row by row (DETR, §A.4).

    Coordinates are cell numbers from 1, normalised to (0, 2π]. One half of the channels, whose
    number is a multiple of 4, encodes y, the other x, each as sines and cosines in alternation,
    their frequency falling geometrically from 1 to almost ``1 / temperature``.

    Returns:
        ``(height * width, channels)`` float32, values in [-1, 1].
    """
    # PE(x, 2i) = sin(x / T^(2i / d)), PE(x, 2i + 1) = cos(x / T^(2i / d)), d = C / 2 for an axis.
    per_axis = channels // 2
    exponent = torch.arange(per_axis, device=device) // 2 * 2 / per_axis
    frequency = temperature**-exponent

    def encode(length: int) -> Tensor:
        cells = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        # The small constant is part of the published definition.
        angles = (cells / (length + 1e-6) * 2 * math.pi)[:, None] * frequency
        return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)

    # y in the first half of the channels, x in the second.
    # (H, W, C / 2) each.
    rows = encode(height)[:, None].expand(height, width, per_axis)
    columns = encode(width)[None].expand(height, width, per_axis)
    return torch.cat((rows, columns), dim=2).reshape(height * width, channels)


@cached_table
def _cell_centres(spatial_shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    # Centres at half-integers, as fractions of the map: ((x + ½) / W, (y + ½) / H).
    centres = []
    for height, width in spatial_shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        centre = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1)
        centres.append(centre.view(-1, 2))
    return torch.cat(centres)


@cached_table
def _cell_sizes(spatial_shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    return torch.tensor([(1 / width, 1 / height) for height, width in spatial_shapes]).to(device)
