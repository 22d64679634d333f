import random

import numpy as np
import torch

from proscale.utils.random_state import Purpose, seed_generators


def draw(*arguments) -> tuple[float, float, float]:
    seed_generators(*arguments)
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_the_same_place_gives_the_same_numbers():
    first = draw(3, Purpose.SAMPLE, 7)
    torch.rand(5), np.random.rand(5), random.random()
    assert draw(3, Purpose.SAMPLE, 7) == first


def test_seed_purpose_and_place_all_matter():
    places = [
        (3, Purpose.SAMPLE, 7),
        (4, Purpose.SAMPLE, 7),
        (3, Purpose.STEP, 7),
        (3, Purpose.SAMPLE, 8),
        (3, Purpose.STEP, 7, 0),
        (3, Purpose.STEP, 7, 1),
        (2**31 - 1, Purpose.STEP, 2**40, 9),
    ]
    for numbers in zip(*(draw(*place) for place in places), strict=True):
        # Trailing zeros add nothing: (7,) and (7, 0) are never used for one purpose.
        assert len(set(numbers)) >= len(places) - 1
