"""The Light-Pixel Embedding (PRO-SCALE, §3): max-pooling where Mask2Former convolves."""

from detectron2.layers import get_norm
from torch import Tensor, nn

from proscale.ops.tiled import max_pool_3x3


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
        return self.norm(max_pool_3x3(feature)).relu_()
