"""The Light-Pixel Embedding (PRO-SCALE, §3): max-pooling where Mask2Former convolves."""

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.ops.tracing import should_tile

# So many numbers, 4 MiB of float32, stay in a CPU's cache from pass to pass.
BLOCK_NUMBERS = 2**20


class LightPixelEmbedding(nn.Module):
    """3x3 max-pooling of stride one, norm, ReLU: a context of the same size without weights.

    Args:
        channels: of input and output.
        norm: Detectron2's name of the norm.
    """

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.norm = get_norm(norm, channels) or nn.Identity()

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape, values ≥ 0.

        ``feature`` may be overwritten where no gradient is wanted.
        """
        return self.norm(_max_pool(feature)).relu_()


def _max_pool(feature: Tensor) -> Tensor:
    """3x3 max-pooling of stride one; ``(B, C, H, W)``."""
    # On a CPU PyTorch pools neighbouring channels together several times as fast.
    feature = feature.contiguous(memory_format=torch.channels_last)
    if not should_tile(feature):
        return F.max_pool2d(feature, 3, stride=1, padding=1)
    # PyTorch's own also writes where it found the maxima, twice as many bytes as these.
    for rows in feature.permute(0, 2, 3, 1):  # (H, W, C)
        step = max(1, BLOCK_NUMBERS // rows[0].numel())
        above = rows[:1].clone()
        for start in range(0, len(rows), step):
            above = _pool_rows(rows, start, min(start + step, len(rows)), above)
    return feature


def _pool_rows(rows: Tensor, start: int, stop: int, above: Tensor) -> Tensor:
    """Pool rows ``start`` to ``stop`` of ``(H, W, C)`` in place.

    Args:
        above: ``(1, W, C)``, the row before ``start`` as it was, which has been pooled already.

    Returns:
        the last row as it was.
    """
    block = rows[start:stop]
    last = block[-1:].clone()
    tallest = torch.cat((above, block[:-1]))
    torch.maximum(tallest, block, out=tallest)
    below = rows[start + 1 : stop + 1]
    torch.maximum(tallest[: len(below)], below, out=tallest[: len(below)])
    block.copy_(tallest)
    torch.maximum(tallest[:, 1:], tallest[:, :-1], out=block[:, 1:])
    torch.maximum(block[:, :-1], tallest[:, 1:], out=block[:, :-1])
    return last
