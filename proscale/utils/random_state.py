"""Randomness as a function of the seed and of its purpose: no generator has to be saved.

The draws for a training sample depend on the seed and the sample's place in the stream of samples
alone, those of a training step on the seed, the iteration and the rank. Neither the number of
loader workers nor an interruption makes a difference.
"""

import random
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """Purpose of a seed: the same numbers give other draws for another purpose."""

    SAMPLE = 0
    STEP = 1


def seed_generators(seed: int, purpose: Purpose, *place: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators, also the current GPU's if CUDA is in use.

    Args:
        seed: of the run, ≥ 0.
        purpose: of the draws that follow.
        place: numbers ≥ 0 that distinguish the occasions of a purpose.
    """
    # SeedSequence mixes the numbers, so that neighbouring seeds give unrelated states.
    words = np.random.SeedSequence((seed, purpose, *place)).generate_state(6)
    random.seed(words[:2].tobytes())
    np.random.seed(words[2:4])
    torch_seed = int.from_bytes(words[4:].tobytes(), "little") >> 1  # fits into int64
    # Not torch.manual_seed: where CUDA is not in use, that notes the caller's stack every time.
    torch.default_generator.manual_seed(torch_seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(torch_seed)
