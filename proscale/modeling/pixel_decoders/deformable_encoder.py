"""The deformable transformer encoder layer (Deformable DETR, §4.1) and what its tokens carry.

Token order everywhere: levels one after another, each level's cells row by row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.ops import deformable_attention
from proscale.ops.fused import at_least_float32, feed_forward, softmax_small_dim
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
    """Attention of every query to ``n_points`` places per head and level around its own place, or
    around the reference that it is given."""

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

    def forward(
        self, query: Tensor, tokens: Tensor, plan: "TokenPlan", references: Tensor | None = None
    ) -> Tensor:
        """Queries attend tokens.

        Args:
            query: ``(B, N, C)``.
            tokens: ``(B, S, C)``, those of ``plan``.
            references: places of the queries as fractions of the image: points (x, y)
                ``(B, N, 2)`` or boxes (cx, cy, w, h) ``(B, N, 4)``, float32. None: the queries are
                those of the first N tokens, whose cells' centres are their places.

        Returns:
            ``(B, N, C)``.
        """
        if references is None:
            references = plan.reference_points[:, : query.shape[1]]
        locations = self._sampling_locations(query, plan.on_levels(references), plan)
        # Equation 3 of Deformable DETR: for each head m, output projection W_m of the sum over
        # levels l and points k of A_mlqk · W'_m x_l(φ_l(p_q) + Δp_mlqk).
        value = self.value_proj(tokens)
        # Padding is like what lies outside of the map.
        if plan.padding is not None:
            value = value.masked_fill(plan.padding[..., None], 0.0)
        # W'_m x: (B, S, C) to (B, S, M, C / M).
        attended = self.attend(query, value.unflatten(2, (self.n_heads, -1)), locations, plan)
        # Σ over heads of W_m: one linear layer on the heads side by side, (B, N, C).
        return self.output_proj(attended)

    def attend(self, query: Tensor, value: Tensor, locations: Tensor, plan: "TokenPlan") -> Tensor:
        """Weighted sums ``(B, N, C)`` of the values at ``locations`` ``(B, N, M, L, P, 2)``."""
        # A: softmax over the L·P points of a head together, (B, N, M, L·P).
        logits = self.attention_weights(query).unflatten(2, (self.n_heads, -1))
        weights = softmax_small_dim(logits).view(locations.shape[:-1])
        return deformable_attention(value, plan.spatial_shapes, locations, weights)

    def _sampling_locations(self, query: Tensor, places: Tensor, plan: "TokenPlan") -> Tensor:
        """φ_l(p_q) + Δp_mlqk, ``(B, N, M, L, P, 2)`` as fractions of the map, around points or
        boxes ``places``, ``(B, N, L or 1, 2 or 4)``."""
        per_level = (self.n_heads, self.n_levels, self.n_points, 2)
        weight: Tensor = self.sampling_offsets.weight
        bias: Tensor = self.sampling_offsets.bias
        is_box = places.shape[-1] == 4
        if not is_box:
            # Offsets Δp are linear in the query; cells of level l are 1 / (W_l, H_l) of the map.
            # Scaling the layer rather than its output saves a pass over the offsets.
            cell_size = plan.cell_sizes[:, None].expand(per_level).reshape(-1)
            weight, bias = weight * cell_size[:, None], bias * cell_size
        # Float32 under autocast, too: in half precision a place in the map would be rounded by up
        # to a tenth of a cell.
        with torch.autocast(query.device.type, enabled=False):
            offsets = F.linear(at_least_float32(query), weight, bias).unflatten(2, per_level)
        # (B, N, 1, L or 1, 1, 2 or 4), the same for all heads and points.
        places = places[:, :, None, :, None]
        if is_box:
            # Offsets of a box are in halves of its size, the farthest point at its border
            # (Deformable DETR, §4.2).
            offsets = offsets * (places[..., 2:] / (2 * self.n_points))
        return offsets + places[..., :2]


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
        attended = self.self_attn(asking + plan.position[:, :queries], tokens, plan)
        # Post-norm: norms after the residual sums.
        return self.feed_forward(self.norm1(asking + self.dropout(attended)), plan)

    def feed_forward(self, tokens: Tensor, plan: "TokenPlan") -> Tensor:
        """The second half of the layer, ``(B, N, C)`` to the same shape: the first N tokens of
        ``plan``."""
        # FFN(x) = W_2 dropout(relu(W_1 x)), in blocks of tokens on a CPU.
        update = feed_forward(tokens, self.linear1, self.linear2, self.dropout)
        return self.norm2(tokens + self.dropout(update))


class TokenPlan(NamedTuple):
    """What the tokens of several levels carry besides their content, for each image or, with a
    first length of 1, for all images of a batch alike."""

    spatial_shapes: list[tuple[int, int]]
    position: Tensor  #: ``(B or 1, S, C)`` sine encoding plus the level's embedding
    #: ``(B or 1, S, 2)`` the cells' centres as (x, y), fractions of the image: in (0, 1), beyond it
    #: in the padding
    reference_points: Tensor
    cell_sizes: Tensor  #: ``(L, 2)`` of each level, as (x, y) fractions of the map
    #: ``(B, L, 2)`` the part of each map that is the image, (x, y); None where all of it is
    valid_ratios: Tensor | None = None
    padding: Tensor | None = None  #: ``(B, S)`` bool, the tokens beyond the image; None for none

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
            self.position[:, :tokens],
            self.reference_points[:, :tokens],
            self.cell_sizes[:levels],
            None if self.valid_ratios is None else self.valid_ratios[:, :levels],
            None if self.padding is None else self.padding[:, :tokens],
        )

    def on_levels(self, references: Tensor) -> Tensor:
        """Points or boxes ``(B or 1, N, 2 or 4)``, fractions of the image, as fractions of each
        level's map: ``(B or 1, N, L, 2 or 4)``, or L = 1 where all levels have the same."""
        if self.valid_ratios is None:
            return references[:, :, None]
        # Points scale by the ratios of x and y, and so do sizes.
        ratios = self.valid_ratios.repeat(1, 1, references.shape[-1] // 2)
        return references[:, :, None] * ratios[:, None]


def plan_tokens(
    spatial_shapes: Sequence[tuple[int, int]],
    level_embed: Tensor,
    *,
    temperature: float = 10000.0,
    centred: bool = False,
    valid_shapes: Sequence[Sequence[tuple[int, int]]] = (),
) -> TokenPlan:
    """The plan of all levels of ``spatial_shapes``.

    Args:
        spatial_shapes: (H, W) of each level.
        level_embed: ``(L, C)``.
        temperature, centred: see :func:`sine_position_encoding`.
        valid_shapes: of each image, (h, w) of each level, the cells that are not padding; empty
            where no image is padded.
    """
    channels, device = level_embed.shape[1], level_embed.device
    shapes = tuple(spatial_shapes)
    cell_sizes = _cell_sizes(shapes, device)
    # The level's embedding tells levels apart, which places alone cannot (§4.1).
    if not valid_shapes:
        position = [
            sine_position_encoding(
                *shape, channels, device=device, temperature=temperature, centred=centred
            )
            + embedding
            for shape, embedding in zip(shapes, level_embed, strict=True)
        ]
        points = cell_centres(shapes, device)
        return TokenPlan(list(shapes), torch.cat(position)[None], points[None], cell_sizes)
    # Padded images: places are fractions of the image's own part of the map, (B, L, 2) cells.
    valid = torch.tensor([list(map(list, sizes)) for sizes in valid_shapes]).to(device)
    position, centres, padding = [], [], []
    for shape, embedding, own in zip(shapes, level_embed, valid.unbind(1), strict=True):
        # (B, 1) each, rows and columns.
        own = own.split(1, dim=1)
        rows, columns = _places(shape, own, device, centred=centred)
        position.append(_encode_map(rows, columns, channels, temperature) + embedding)
        centres.append(_centres(shape, own, device))
        padding.append((centres[-1] >= 1).any(-1))
    # (x, y) is the order of places, (H, W) that of shapes.
    ratios = valid.flip(-1) * cell_sizes
    return TokenPlan(
        list(shapes),
        torch.cat(position, dim=1),
        torch.cat(centres, dim=1),
        cell_sizes,
        ratios,
        torch.cat(padding, dim=1),
    )


@cached_table
def sine_position_encoding(
    height: int,
    width: int,
    channels: int,
    *,
    device: torch.device | str = "cpu",
    temperature: float = 10000.0,
    centred: bool = False,
) -> Tensor:
    """Sine encoding of every cell of a map, row by row (DETR, §A.4).

    Coordinates are cell numbers from 1, or with ``centred`` the cells' centres from ½, normalised
    to (0, 2π]. One half of the channels, whose number is a multiple of 4, encodes y, the other x,
    each as sines and cosines in alternation, their frequency falling geometrically from 1 to almost
    ``1 / temperature``.

    Returns:
        ``(height * width, channels)`` float32, values in [-1, 1].
    """
    rows, columns = _places((height, width), (height, width), device, centred=centred)
    return _encode_map(rows[None], columns[None], channels, temperature)[0]


# Rows and columns of maps that are the image: of all maps, or (B, 1) of each.
_Own = Sequence[Any]


def _places(
    shape: tuple[int, int], own: _Own, device: torch.device | str, *, centred: bool
) -> tuple[Tensor, Tensor]:
    """Coordinates of the rows ``(H,)`` or ``(B, H)`` and columns of maps, in (0, 1] where the image
    is."""
    rows, columns = (
        # The small constant is part of the published definition.
        (torch.arange(1, length + 1, device=device) - 0.5 * centred) / (count + 1e-6)
        for length, count in zip(shape, own, strict=True)
    )
    return rows, columns


def _encode_map(rows: Tensor, columns: Tensor, channels: int, temperature: float) -> Tensor:
    """Sine encodings ``(B, H·W, channels)`` of coordinates ``(B, H)`` and ``(B, W)``."""
    # PE(x, 2i) = sin(x / T^(2i / d)), PE(x, 2i + 1) = cos(x / T^(2i / d)), d = C / 2 for an axis.
    per_axis = channels // 2
    exponent = torch.arange(per_axis, device=rows.device) // 2 * 2 / per_axis
    frequency = temperature**-exponent

    def encode(places: Tensor) -> Tensor:
        angles = (places * 2 * math.pi)[..., None] * frequency
        return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)

    # y in the first half of the channels, x in the second: (B, H, W, C / 2) each.
    size = (rows.shape[1], columns.shape[1], per_axis)
    y = encode(rows)[:, :, None].expand(-1, *size)
    x = encode(columns)[:, None].expand(-1, *size)
    return torch.cat((y, x), dim=3).flatten(1, 2)


@cached_table
def cell_centres(spatial_shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Centres of the cells ``(ΣH·W, 2)`` of maps (H, W), as (x, y) in (0, 1), row by row."""
    return torch.cat([_centres(shape, shape, device)[0] for shape in spatial_shapes])


def _centres(shape: tuple[int, int], own: _Own, device: torch.device) -> Tensor:
    """Cells' centres ``(B or 1, H·W, 2)`` as (x, y), fractions of the image."""
    # Centres at half-integers: ((x + ½) / W, (y + ½) / H), (1, H) or (B, H).
    y, x = (
        ((torch.arange(length, device=device) + 0.5) / count).view(-1, length)
        for length, count in zip(shape, own, strict=True)
    )
    size = (-1, *shape)
    points = (x[:, None].expand(size), y[:, :, None].expand(size))
    return torch.stack(points, dim=-1).flatten(1, 2)


@cached_table
def _cell_sizes(spatial_shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    return torch.tensor([(1 / width, 1 / height) for height, width in spatial_shapes]).to(device)
