"""Checks of tensors that came in a file: whether a model can take them as they are."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proscale.errors import CheckpointError, printable

# The numbers that weights, and what is saved with them, consist of.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_DTYPES = {*_FLOATS, *_WHOLE, *_UNSIGNED, torch.complex64, torch.complex128}
# A count that nothing reads, and a kind of number that older files have otherwise.
_COUNTER = ".num_batches_tracked"


def check_tensors(path: Path, content: Mapping[Any, Any], size: int) -> None:
    """Check all tensors and arrays in a file of ``size`` bytes.

    Raises:
        CheckpointError: one is not dense or not of numbers; or together they need far more memory
            than the file, because a tensor repeats a few numbers by strides of 0.
    """
    total, largest, seen = 0, (0, ""), set()
    remaining: list[tuple[Any, Any]] = [("", content)]
    while remaining:
        name, value = remaining.pop()
        if isinstance(value, Mapping | list | tuple | set):
            # Containers may hold themselves.
            if id(value) not in seen:
                seen.add(id(value))
                pairs = value.items() if isinstance(value, Mapping) else ((name, v) for v in value)
                remaining.extend(pairs)
        elif isinstance(value, Tensor | np.ndarray):
            place = printable(name) if isinstance(name, str) else "a value in it"
            if kind := _unusual_kind(value):
                raise CheckpointError(
                    f"{path}: {place} is {kind}: expected a dense tensor of numbers"
                )
            total += value.nbytes
            largest = max(largest, (value.nbytes, place))
    # A few times as many, because parameters may be tied.
    if total > 4 * size + 2**26:
        raise CheckpointError(
            f"{path}: its tensors have {total} bytes, {largest[1]} the most, and the file {size}: "
            "expected tensors whose numbers are all in the file"
        )


def _unusual_kind(value: Tensor | np.ndarray) -> str | None:
    if isinstance(value, np.ndarray):
        # PyTorch has no floats of more than 8 bytes.
        is_number = value.dtype.kind in "biufc" and value.real.dtype.itemsize <= 8
        return None if is_number and value.dtype.isnative else f"an array of {value.dtype}"
    kinds = {
        "quantised": value.is_quantized,
        "nested": value.is_nested,
        "meta": value.is_meta,
        "sparse": value.layout is not torch.strided,
    }
    if kind := next((name for name, holds in kinds.items() if holds), None):
        return f"a {kind} tensor"
    return None if value.dtype in _DTYPES else f"a tensor of {value.dtype}"


def check_fit(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Check tensors in a file that go to those of a model, of the same shapes.

    Raises:
        CheckpointError: they would be rounded or lose their imaginary parts; or a table of indices,
            which follows from the architecture, is another.
    """
    for name, ours in expected.items():
        theirs = state.get(name)
        if theirs is None or name.endswith(_COUNTER):
            continue
        if theirs.is_floating_point() != ours.is_floating_point():
            raise CheckpointError(f"{path}: {name} is of {theirs.dtype}: expected {ours.dtype}")
        is_table = ours.ndim > 0 and not ours.is_floating_point() and not ours.is_meta
        if is_table and not torch.equal(ours.cpu().long(), theirs.cpu().long()):
            raise CheckpointError(
                f"{path}: {name} has other indices than those of the model's architecture"
            )
