"""What is worth doing only while operators run one by one, and not while they are recorded.

A compiler or an exporter makes its own plan of a model, and must see neither values computed
earlier nor work cut into blocks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

_as_recorded = False


def is_recorded() -> bool:
    """Whether operators are being compiled, exported or traced, or run on fake tensors; or are to
    be as if they were."""
    return (
        _as_recorded
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or detect_fake_mode() is not None
    )


@contextmanager
def as_recorded() -> Iterator[None]:
    """Within it models run the operators that a recorder sees, so that both ways can be compared.
    For one thread at a time."""
    global _as_recorded
    before, _as_recorded = _as_recorded, True
    try:
        yield
    finally:
        _as_recorded = before


def should_tile(tensor: Tensor) -> bool:
    """Whether to cut work on ``tensor`` into blocks that stay in a CPU's cache.

    Not where gradients are wanted: every block would keep a part of the graph.
    """
    return tensor.device.type == "cpu" and not torch.is_grad_enabled() and not is_recorded()


def once_per_arguments(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep the last results of a function of sizes and a device; they must not be changed."""

    @lru_cache(maxsize=32)
    def compute(*arguments, **keywords) -> Tensor:
        # An inference tensor could not take part in training later.
        with torch.inference_mode(False), torch.no_grad():
            return function(*arguments, **keywords)

    @wraps(function)
    def kept(*arguments, **keywords) -> Tensor:
        return (function if is_recorded() else compute)(*arguments, **keywords)

    return kept
