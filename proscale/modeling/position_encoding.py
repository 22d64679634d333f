"""Sine position encoding of a feature map (DETR, §A.4; Attention Is All You Need, §3.5)."""

import math

import torch
from torch import Tensor

from proscale.ops.tracing import cached_table


@cached_table
def sine_position_encoding(
    height: int,
    width: int,
    channels: int,
    *,
    device: torch.device | str = "cpu",
    temperature: float = 10000.0,
) -> Tensor:
    """Encoding of every cell of a map, rows first.

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
    per_axis = channels // 2
    exponent = torch.arange(per_axis, device=device) // 2 * 2 / per_axis
    frequency = temperature**-exponent

    def encode(length: int) -> Tensor:
        cells = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        # The small constant is part of the published definition.
        angles = (cells / (length + 1e-6) * 2 * math.pi)[:, None] * frequency
        return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)

    rows = encode(height)[:, None].expand(height, width, per_axis)
    columns = encode(width)[None].expand(height, width, per_axis)
    return torch.cat((rows, columns), dim=2).reshape(height * width, channels)
