"""Randomness as a function of the seed and of what it is for, so that no generator must be saved.

What is drawn for a training sample depends on the seed and the sample's place in the stream of
samples alone, what is drawn in a training step on the seed, the iteration and the process. Thus
neither the number of loader workers nor where a run was interrupted makes a difference.
"""

import random
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What generators are seeded for: the same numbers give other draws for another purpose."""

    SAMPLE = 0
    STEP = 1


def seed_generators(seed: int, purpose: Purpose, *place: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators of this process.

    PyTorch's are the CPU's, and the current GPU's where CUDA is in use.

    Args:
        seed: of the run, ≥ 0.
        purpose: what follows.
        place: numbers ≥ 0 that tell this occasion from others.
    """
    words = np.random.SeedSequence((seed, purpose, *place)).generate_state(6)
    random.seed(words[:2].tobytes())
    np.random.seed(words[2:4])
    torch_seed = int.from_bytes(words[4:].tobytes(), "little") >> 1  # fits into int64
    # Not torch.manual_seed: where CUDA is not in use, that notes the caller's stack every time.
    torch.default_generator.manual_seed(torch_seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(torch_seed)
