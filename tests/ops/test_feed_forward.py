"""Blocks of tokens give what all tokens at once give."""

import pytest
import torch
from torch import nn

from proscale.ops import feed_forward as module
from proscale.ops.feed_forward import feed_forward


@pytest.mark.parametrize("shape", [(2, 7, 4), (1, 3, 4), (5, 4)])
def test_blocks_equal_the_whole(shape, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_TOKENS", 3)
    torch.manual_seed(0)
    linear1, linear2, tokens = nn.Linear(4, 8), nn.Linear(8, 4), torch.randn(shape)
    layers = (linear1, linear2, nn.Identity())
    with torch.no_grad():
        should_tile = feed_forward(tokens, *layers)
    whole = feed_forward(tokens, *layers)
    assert whole.requires_grad
    torch.testing.assert_close(should_tile, linear2(linear1(tokens).relu()))
    torch.testing.assert_close(should_tile, whole)
