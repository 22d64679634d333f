"""Tiles give what the whole gives."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from proscale.ops import tiled
from proscale.ops.tiled import feed_forward, map_rows, max_pool_3x3


@pytest.mark.parametrize("shape", [(2, 7, 4), (1, 3, 4), (5, 4)])
def test_feed_forward_of_blocks_of_tokens(shape, monkeypatch):
    monkeypatch.setattr(tiled, "BLOCK_TOKENS", 3)
    torch.manual_seed(0)
    linear1, linear2, tokens = nn.Linear(4, 8), nn.Linear(8, 4), torch.randn(shape)
    layers = (linear1, linear2, nn.Identity())
    with torch.no_grad():
        blocks = feed_forward(tokens, *layers)
    whole = feed_forward(tokens, *layers)
    assert whole.requires_grad
    torch.testing.assert_close(blocks, linear2(linear1(tokens).relu()))
    torch.testing.assert_close(blocks, whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (2, 2), (6, 5), (7, 5)])
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_max_pooling_of_blocks_of_rows(size, rows, monkeypatch):
    monkeypatch.setattr(tiled, "POOL_NUMBERS", rows * size[1] * 3)
    maps = torch.randn(2, 3, *size, generator=torch.manual_seed(0))
    expected = F.max_pool2d(maps, 3, stride=1, padding=1)
    assert torch.equal(max_pool_3x3(maps), expected)
    with torch.no_grad():
        assert torch.equal(max_pool_3x3(maps), expected)


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_rows_see_their_neighbours(rows, monkeypatch):
    monkeypatch.setattr(tiled, "ROWS_BYTES", rows * 2 * 4 * 3 * 4)
    tokens = torch.randn(2, 7 * 4, 3, generator=torch.manual_seed(0))
    sizes = []

    def pool(strip, size, wanted):
        sizes.append(size)
        maps = strip.unflatten(1, size).permute(0, 3, 1, 2)
        pooled = F.max_pool2d(maps, 3, stride=1, padding=1)[:, :, wanted]
        return pooled.permute(0, 2, 3, 1).flatten(1, 2)

    whole = map_rows(pool, tokens, (7, 4), hidden=3, halo=1)
    assert sizes == [(7, 4)]  # autograd is on
    with torch.no_grad():
        assert torch.equal(map_rows(pool, tokens, (7, 4), hidden=3, halo=1), whole)
    assert len(sizes) == 1 + -(-7 // rows)
