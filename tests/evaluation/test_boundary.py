"""Boundaries of masks against their definition, and by hand."""

import numpy as np
import pytest

from proscale.evaluation.boundary import boundary_width, inner_boundary


def by_definition(mask):
    """Pixels of the mask with something else, or the image's end, within the width."""
    width = boundary_width(*mask.shape)
    padded = np.pad(mask, width)
    result = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        window = padded[row : row + 2 * width + 1, column : column + 2 * width + 1]
        result[row, column] = not window.all()
    return result


@pytest.mark.parametrize(
    ("size", "expected"), [((3, 4), 1), ((30, 40), 1), ((60, 80), 2), ((480, 640), 16)]
)
def test_width_is_a_fiftieth_of_the_diagonal(size, expected):
    assert boundary_width(*size) == expected


@pytest.mark.parametrize("size", [(20, 30), (90, 140)])
def test_boundary_equals_its_definition(size):
    random = np.random.default_rng(0)
    for _ in range(5):
        mask = np.zeros(size, dtype=bool)
        for _ in range(3):
            top, left = random.integers(size[0]), random.integers(size[1])
            mask[top : top + size[0] // 2, left : left + size[1] // 2] = True
        mask[random.integers(size[0]), :] = False
        np.testing.assert_array_equal(inner_boundary(mask), by_definition(mask))


def test_masks_without_interior_and_without_pixels():
    empty = np.zeros((5, 5), dtype=bool)
    assert not inner_boundary(empty).any()
    line = empty.copy()
    line[2] = True
    np.testing.assert_array_equal(inner_boundary(line), line)
    assert inner_boundary(np.ones((5, 5), dtype=bool)).sum() == 16
