"""Maps as sequences of tokens, row by row, and back; and the encoding of the tokens' places."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from proscale.ops.tracing import cached_table


def to_map(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """``(B, H·W, C)`` as ``(B, C, H, W)`` in channels-last layout, without a copy."""
    # Channels stay innermost in memory: a view.
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def to_tokens(maps: Tensor) -> Tensor:
    """``(B, C, H, W)`` as ``(B, H·W, C)``, contiguous; without a copy where channels are last."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


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

    Coordinates are cell numbers from 1, normalised to (0, 2π]. One half of the channels encodes y,
    the other x, each as sines and cosines of geometrically falling frequency in alternation.

    Args:
        height, width: size of the map, cells.
        channels: a multiple of 4.
        device: where the encoding is made.
        temperature: ratio of the highest to the lowest frequency.

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
