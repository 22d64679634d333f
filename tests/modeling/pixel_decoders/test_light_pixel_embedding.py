"""The Light-Pixel Embedding against PyTorch's pooling."""

import pytest
import torch
from torch.nn import functional as F

from proscale.modeling.pixel_decoders import light_pixel_embedding
from proscale.modeling.pixel_decoders.light_pixel_embedding import LightPixelEmbedding


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (2, 2), (6, 5), (7, 5)])
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_blocks_of_rows_pool_as_the_whole(size, rows, monkeypatch):
    monkeypatch.setattr(light_pixel_embedding, "BLOCK_NUMBERS", rows * size[1] * 3)
    feature = torch.randn(2, 3, *size, generator=torch.manual_seed(0))
    layer = LightPixelEmbedding(3, norm="")
    expected = F.max_pool2d(feature, 3, stride=1, padding=1).relu()
    assert torch.equal(layer(feature), expected)
    with torch.no_grad():
        assert torch.equal(layer(feature), expected)


def test_norm_is_between_pooling_and_relu():
    torch.manual_seed(0)
    layer, feature = LightPixelEmbedding(32, norm="GN"), torch.randn(1, 32, 5, 6)
    expected = layer.norm(F.max_pool2d(feature, 3, stride=1, padding=1)).relu()
    torch.testing.assert_close(layer(feature), expected)
