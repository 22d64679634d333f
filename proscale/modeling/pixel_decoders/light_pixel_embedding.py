"""The Light-Pixel Embedding (PRO-SCALE, §3): max-pooling where Mask2Former convolves."""

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.nn import functional as F


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
        # On a CPU PyTorch pools neighbouring channels together several times as fast.
        feature = feature.contiguous(memory_format=torch.channels_last)
        return self.norm(F.max_pool2d(feature, 3, stride=1, padding=1)).relu()
