"""The largest scores of a number of tokens that varies."""

import torch

from proscale.ops import reference_operators
from proscale.ops.selection import largest

SCORES = torch.tensor([[0.1, 0.7, 0.3], [0.9, 0.2, 0.4]])


def test_the_largest_first():
    assert largest(SCORES, 2).tolist() == [[1, 2], [0, 2]]
    with reference_operators():
        assert largest(SCORES, 2).tolist() == [[1, 2], [0, 2]]


def test_too_few_are_all_chosen():
    assert largest(SCORES, 5).tolist() == [[1, 2, 0], [0, 2, 1]]
    # The number is constant in an exported file: the last one is repeated.
    with reference_operators():
        assert largest(SCORES, 5).tolist() == [[1, 2, 0, 2, 2], [0, 2, 1, 2, 2]]
