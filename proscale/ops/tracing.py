"""The seam between the optimised and the reference implementation of an operation.

Functions of this package may tile work, fold weights or keep tables. Each has a reference
implementation: the operators of the published model, on whole tensors. It runs in two cases:

- while a graph is captured (:func:`is_tracing`). A compiler or an exporter makes its own plan, and
  must see neither tables computed earlier nor work cut into blocks;
- within :func:`reference_operators`, to compare both implementations.

Only functions of ``proscale.ops`` ask. Models call them, and have one ``forward``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import ParamSpec

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

P = ParamSpec("P")

# Of the running context: other threads keep their choice.
_reference: ContextVar[bool] = ContextVar("proscale_reference_operators", default=False)


def is_tracing() -> bool:
    """Whether operators are being compiled, exported or traced, or run on fake tensors."""
    return (
        # torch.compile and torch.export; torch.jit.trace; shapes without data.
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or detect_fake_mode() is not None
    )


def use_reference() -> bool:
    """Whether to run the reference implementation."""
    # A compiler follows the first operand only: a context variable would end its graph.
    return is_tracing() or _reference.get()


@contextmanager
def reference_operators() -> Iterator[None]:
    """Within it, and in this thread, operations run their reference implementation; for deformable
    attention see :func:`~proscale.ops.deformable_attention.using_backend`."""
    # Reset, not set to False: contexts may be nested.
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)


def cached_table(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Keep the last results of a function of sizes and a device; they must not be changed."""

    @lru_cache(maxsize=32)
    def compute(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        # An inference tensor could not take part in training later.
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    @wraps(function)
    def cached(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        return function(*args, **kwargs) if use_reference() else compute(*args, **kwargs)  # type: ignore[arg-type]

    return cached
