"""Strips of masks against masks resized whole."""

import pytest
import torch

from proscale.ops.mask_resize import Band, Sizes, mask_probabilities, resize_weights

SIZES = {
    "nothing to do": Sizes(padded=(12, 17), image=(12, 17), result=(12, 17)),
    "padding": Sizes(padded=(64, 96), image=(50, 70), result=(50, 70)),
    "another size": Sizes(padded=(64, 96), image=(64, 96), result=(101, 300)),
    "both": Sizes(padded=(64, 96), image=(50, 70), result=(100, 141)),
    "smaller": Sizes(padded=(64, 96), image=(50, 70), result=(9, 5)),
    "one pixel": Sizes(padded=(64, 96), image=(50, 70), result=(1, 1)),
}


@pytest.fixture
def logits():
    return torch.randn(7, 12, 17, generator=torch.Generator().manual_seed(0)) * 4


def collect(logits, queries, sizes, **options):
    """All strips, and how many there were."""
    strips = list(mask_probabilities(logits, torch.tensor(queries), sizes, **options))
    assert [rows.start for rows, _ in strips] == [0, *(rows.stop for rows, _ in strips[:-1])]
    assert all(part.shape[1] == rows.stop - rows.start for rows, part in strips)
    return torch.cat([part for _, part in strips], 1), len(strips)


@pytest.mark.parametrize("resize_first", [True, False])
@pytest.mark.parametrize("strip_bytes", [1, 40_000, 2**30])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_strips_are_what_resizing_twice_gives(logits, reference, sizes, strip_bytes, resize_first):
    options = {"resize_first": resize_first}
    found, _ = collect(logits, list(range(7)), sizes, strip_bytes=strip_bytes, **options)
    expected = reference.mask_probabilities(logits, sizes, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_only_wanted_queries_are_made(logits):
    options = {"resize_first": True, "strip_bytes": 2**20}
    sizes = SIZES["both"]
    everything, _ = collect(logits, list(range(7)), sizes, **options)
    some, _ = collect(logits, [1, 4, 6], sizes, **options)
    torch.testing.assert_close(some, everything[[1, 4, 6]])


@pytest.mark.parametrize("resize_first", [True, False])
def test_strips_are_as_large_as_allowed(logits, resize_first):
    sizes, queries = SIZES["another size"], list(range(7))
    for strip_bytes in (7 * 300 * 4, 4 * 7 * 300 * 4):
        strips = mask_probabilities(
            logits, torch.tensor(queries), sizes, resize_first=resize_first, strip_bytes=strip_bytes
        )
        sizes_in_bytes = [part.numel() * 4 for _, part in strips]
        assert max(sizes_in_bytes) == strip_bytes


def test_half_precision_is_resized_in_float32(logits, reference):
    sizes = SIZES["both"]
    half = logits.bfloat16()
    found, _ = collect(half, list(range(7)), sizes, resize_first=True, strip_bytes=2**20)
    assert found.dtype == torch.float32
    expected = reference.mask_probabilities(half, sizes, resize_first=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_weights_interpolate():
    weights = resize_weights(2, (4, 4))
    assert weights.tolist() == [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert resize_weights(2, (4, 3), (3, 3)).tolist() == weights[:3].tolist()


@pytest.mark.parametrize("steps", [[(160, 150), (333, 333)], [(160, 150), (41, 41)], [(11, 11)]])
def test_no_weight_lies_beside_the_band(steps):
    weights = resize_weights(40, *steps)
    band = Band(weights, torch.device("cpu"))
    torch.testing.assert_close(weights.sum(1), torch.ones(len(band.weights)))
    for start in range(len(band.weights)):
        for stop in range(start + 1, min(start + 9, len(band.weights) + 1)):
            inputs = band.inputs(slice(start, stop))
            outside = weights[start:stop].clone()
            outside[:, inputs] = 0
            assert not outside.any()
