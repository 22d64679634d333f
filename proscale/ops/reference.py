"""Multi-scale deformable attention as its definition reads: one ``grid_sample`` per level.

The oracle that faster backends are tested against.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """See :func:`proscale.ops.deformable_attention`."""
    batch, _, heads, width = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    # grid_sample's coordinates run from -1 to 1, a cell's centre at half-integers.
    grids = 2 * sampling_locations.to(dtype) - 1
    output = value.new_zeros((batch * heads, width, queries), dtype=dtype)
    levels = value.to(dtype).split([height * length for height, length in spatial_shapes], dim=1)
    for index, ((height, length), tokens) in enumerate(zip(spatial_shapes, levels, strict=True)):
        maps = tokens.permute(0, 2, 3, 1).reshape(batch * heads, width, height, length)
        grid = grids[:, :, :, index].transpose(1, 2).reshape(batch * heads, queries, points, 2)
        sampled = F.grid_sample(
            maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        weights = attention_weights[:, :, :, index].transpose(1, 2)
        weights = weights.to(dtype).reshape(batch * heads, 1, queries, points)
        output = output + (sampled * weights).sum(-1)
    output = output.reshape(batch, heads * width, queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()
