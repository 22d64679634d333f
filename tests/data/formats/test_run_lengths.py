"""Run lengths: of whole maps as pycocotools makes them mask by mask."""

import numpy as np
import pycocotools.mask
import pytest

from proscale.data.formats.run_lengths import encode_mask, encode_segments, run_lengths


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 9), (40, 53)])
def test_codes_are_those_of_every_mask(shape):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 4, (-(-shape[0] // 5), -(-shape[1] // 5))) * 1000
    ids = np.kron(coarse, np.ones((5, 5), int))[: shape[0], : shape[1]]
    codes = encode_segments(ids)
    assert list(codes) == np.unique(ids).tolist()
    for id_, code in codes.items():
        assert code == pycocotools.mask.encode(np.asfortranarray(ids == id_, np.uint8))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 9), (40, 53)])
def test_code_of_a_mask(shape, order):
    mask = np.asarray(np.random.default_rng(0).random(shape) < 0.5, order=order)
    assert encode_mask(mask) == pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))


def test_polygons_and_run_lengths_become_one_code():
    square = [[0, 0, 2, 0, 2, 2, 0, 2]]
    expected = np.zeros((3, 4), bool)
    expected[:2, :2] = True
    for segmentation in (
        square,
        {"size": [3, 4], "counts": [0, 2, 1, 2, 7]},
        pycocotools.mask.encode(np.asfortranarray(expected, np.uint8)),
    ):
        code = run_lengths(segmentation, 3, 4)
        assert np.array_equal(pycocotools.mask.decode(code), expected)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "neither polygons"),
        ("text", "neither polygons"),
        ([[0, 0, 1, 1]], "at least six"),
        ([[0, 0, 1, 1, 2, 2, 3]], "even number"),
        ({"size": [4, 3], "counts": [12]}, r"\[4, 3\], its image \(3, 4\)"),
        ({"size": [3, 4], "counts": [11]}, "do not add up to 12"),
        ({"counts": [12]}, "None"),
    ],
)
def test_what_is_neither_is_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        run_lengths(segmentation, 3, 4)
