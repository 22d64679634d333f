"""Merging and un-merging against plain oracles and `tomesd`, at any size."""

import pytest
import tomesd.merge
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from proscale.modeling.backbones.token_merging import (
    AveragePooling,
    BipartiteSoftMatching,
    SharedMatching,
    Unmerged,
)

SIDES = st.integers(1, 12)
CELLS = st.integers(1, 5)


def random_tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def destinations(size: tuple[int, int], cell: tuple[int, int]) -> torch.Tensor:
    """Places of the destinations, one after another."""
    places = torch.arange(size[0] * size[1]).view(size)
    (height, width), (sy, sx) = size, cell
    return places[: height // sy * sy : sy, : width // sx * sx : sx].flatten()


def in_order(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens by their first channel."""
    return tokens.gather(1, tokens[..., :1].argsort(1).expand_as(tokens))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(SIDES, SIDES, CELLS, CELLS, st.floats(0, 0.99), st.integers(0, 10**6))
def test_bsm_equals_tomesd(height, width, sy, sx, ratio, seed):
    size, count = (height, width), height * width
    tokens, values = random_tokens(seed, 2, 2, count, 8)
    matching = BipartiteSoftMatching(ratio, (sy, sx)).match(tokens, size)
    merged = matching.merge(values)
    places = destinations(size, (sy, sx))
    if len(places) in (0, count) or int(ratio * count) == 0:  # no destination, or nothing else
        assert merged is values
        return
    merge, unmerge = tomesd.merge.bipartite_soft_matching_random2d(
        tokens, width, height, sx, sy, int(ratio * count), no_rand=True
    )
    expected = merge(values)
    # The order in which merged tokens stand means nothing to the attention.
    torch.testing.assert_close(in_order(merged), in_order(expected))
    torch.testing.assert_close(matching.unmerge(merged), unmerge(expected))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(SIDES, SIDES, CELLS, CELLS, st.floats(0, 0.99), st.integers(0, 10**6))
def test_merging_undoes_unmerging_and_destinations_stay(height, width, sy, sx, ratio, seed):
    size, cell = (height, width), (sy, sx)
    matching = BipartiteSoftMatching(ratio, cell).match(
        random_tokens(seed, 2, height * width, 8), size
    )
    length = matching.merge(torch.zeros(2, height * width, 1)).shape[1]
    merged = random_tokens(seed + 1, 2, length, 3)
    full = matching.unmerge(merged)
    torch.testing.assert_close(matching.merge(full), merged)
    if length < height * width:
        places = destinations(size, cell).tolist()
        assert torch.equal(full[:, places], merged[:, -len(places) :])


def test_destinations_without_sources_are_kept_exactly():
    tokens = random_tokens(0, 1, 64, 8)
    # Sources are far nearer to the first destination than to any other.
    tokens[:, :, 0] += 100
    others = destinations((8, 8), (4, 4))[1:]
    tokens[:, others, 0] -= 200
    matching = BipartiteSoftMatching(0.7, (4, 4)).match(tokens, (8, 8))
    there_and_back = matching.unmerge(matching.merge(tokens))
    assert torch.equal(there_and_back[:, others], tokens[:, others])
    assert not torch.equal(there_and_back[:, 0], tokens[:, 0])


def test_all_sources_may_be_merged_and_none():
    tokens = random_tokens(0, 1, 64, 8)
    assert BipartiteSoftMatching(0.99, (4, 4)).match(tokens, (8, 8)).merge(tokens).shape[1] == 4
    assert BipartiteSoftMatching(0.0, (4, 4)).match(tokens, (8, 8)).merge(tokens) is tokens
    # One token too few for one to be merged away.
    assert BipartiteSoftMatching(0.01, (4, 4)).match(tokens, (8, 8)).merge(tokens) is tokens


def test_bsm_takes_equal_and_zero_tokens():
    for tokens in (torch.ones(1, 64, 4), torch.zeros(1, 64, 4)):
        matching = BipartiteSoftMatching(0.5, (2, 2)).match(tokens, (8, 8))
        merged = matching.merge(tokens)
        assert merged.shape == (1, 32, 4)
        torch.testing.assert_close(matching.unmerge(merged), tokens)


def test_bsm_matches_in_float32_under_autocast():
    tokens = random_tokens(0, 1, 256, 16)
    # So alike that bfloat16 would see the same similarity everywhere.
    tokens = 1 + 1e-3 * tokens
    method = BipartiteSoftMatching(0.5, (2, 2))
    expected = method.match(tokens, (16, 16)).merge(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merged = method.match(tokens, (16, 16)).merge(tokens)
    torch.testing.assert_close(merged, expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 9), (8, 8)])
@pytest.mark.parametrize("window", [(2, 2), (3, 4), (1, 1), (16, 16)])
def test_pooling_averages_what_is_in_the_window(size, window):
    (height, width), (rows, columns) = size, window
    tokens = random_tokens(0, 2, height * width, 3)
    matching = AveragePooling(window).match(tokens, size)
    merged = matching.merge(tokens)
    maps = tokens.view(2, height, width, 3)
    expected = [
        maps[:, top : top + rows, left : left + columns].mean((1, 2))
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]
    torch.testing.assert_close(merged, torch.stack(expected, 1))
    pooled = merged.view(2, -(-height // rows), -(-width // columns), 3).permute(0, 3, 1, 2)
    nearest = F.interpolate(pooled, size=size, mode="nearest").flatten(2).mT
    assert torch.equal(matching.unmerge(merged), nearest)


@pytest.mark.parametrize(("count", "window"), [(12, 2), (13, 2), (12, 5), (3, 7)])
def test_flat_pooling_follows_the_sequence(count, window):
    tokens = random_tokens(0, 1, count, 3)
    matching = AveragePooling((1, window), flat=True).match(tokens, (1, count))
    merged = matching.merge(tokens)
    expected = torch.stack([part.mean(1) for part in tokens.split(window, 1)], 1)
    torch.testing.assert_close(merged, expected)
    nearest = F.interpolate(merged.mT, size=count, mode="nearest").mT
    assert torch.equal(matching.unmerge(merged), nearest)
    # On a map, windows go over the ends of rows.
    if count == 12:
        assert torch.equal(
            AveragePooling((1, window), flat=True).match(tokens, (4, 3)).merge(tokens), merged
        )


@pytest.mark.parametrize(
    "method",
    [BipartiteSoftMatching(0.6, (2, 2)), AveragePooling((2, 2)), AveragePooling((1, 3), flat=True)],
)
def test_gradients_flow_through_merging(method):
    tokens = random_tokens(0, 2, 15, 2).double().requires_grad_()
    matching = method.match(tokens, (3, 5))

    def there_and_back(tokens: torch.Tensor) -> torch.Tensor:
        return matching.unmerge(matching.merge(tokens) ** 2)

    assert torch.autograd.gradcheck(there_and_back, tokens)


def test_the_first_matching_is_shared():
    class Counting(Unmerged):
        calls = 0

        def match(self, tokens, size):
            self.calls += 1
            return self.calls

    shared = SharedMatching(Counting())
    assert [shared(torch.zeros(1, 1, 1), (1, 1)) for _ in range(3)] == [1, 1, 1]
