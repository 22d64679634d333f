"""The Light-Pixel Embedding (PRO-SCALE, §3): max-pooling where Mask2Former convolves."""

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.modeling.eager import in_blocks

# So many numbers, 1 MiB of float32, stay in a CPU's cache from pass to pass.
BLOCK_NUMBERS = 2**18


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
        """``(B, C, H, W)`` to the same shape, values ≥ 0."""
        return self.norm(_max_pool(feature)).relu_()


def _max_pool(feature: Tensor) -> Tensor:
    """3x3 max-pooling of stride one; ``(B, C, H, W)``."""
    # On a CPU PyTorch pools neighbouring channels together several times as fast.
    feature = feature.contiguous(memory_format=torch.channels_last)
    if not in_blocks(feature):
        return F.max_pool2d(feature, 3, stride=1, padding=1)
    # PyTorch's own also writes where it found the maxima, twice as many bytes as these.
    pooled = torch.empty_like(feature)
    for image, result in zip(feature, pooled, strict=True):
        rows, out = image.permute(1, 2, 0), result.permute(1, 2, 0)  # (H, W, C)
        step = max(1, BLOCK_NUMBERS // rows[0].numel())
        for start in range(0, len(rows), step):
            _pool_rows(rows, out, start, min(start + step, len(rows)))
    return pooled


def _pool_rows(rows: Tensor, out: Tensor, start: int, stop: int) -> None:
    """Rows ``start`` to ``stop`` of the result; both ``(H, W, C)``."""
    block = rows[start:stop].clone()
    above, below = max(start, 1), min(stop, len(rows) - 1)
    torch.maximum(block[above - start :], rows[above - 1 : stop - 1], out=block[above - start :])
    torch.maximum(block[: below - start], rows[start + 1 : below + 1], out=block[: below - start])
    target = out[start:stop]
    target.copy_(block)
    torch.maximum(block[:, 1:], block[:, :-1], out=target[:, 1:])
    torch.maximum(target[:, :-1], block[:, 1:], out=target[:, :-1])
