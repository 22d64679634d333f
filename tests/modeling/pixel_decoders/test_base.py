"""The Light-Pixel Embedding: pooling, norm, ReLU."""

import torch
from torch.nn import functional as F

from proscale.modeling.pixel_decoders.base import LightPixelEmbedding


def test_norm_is_between_pooling_and_relu():
    torch.manual_seed(0)
    layer, feature = LightPixelEmbedding(32, norm="GN"), torch.randn(1, 32, 5, 6)
    expected = layer.norm(F.max_pool2d(feature, 3, stride=1, padding=1)).relu()
    torch.testing.assert_close(layer(feature), expected)
