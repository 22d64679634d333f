"""Pickles of tensors and arrays, read without running other code.

A pickle names the functions that make its objects, and reading it calls them. ``torch.load`` with
``weights_only`` knows the harmless ones in PyTorch's own files. Files of ``pickle.dump``, as in
Detectron2's and Mask2Former's model zoos, are read here: only functions that make tensors, arrays
and plain containers are accepted, in a form that cannot be asked for anything else.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Python 2 wrote arrays as strings in it.
_ENCODING = "latin1"


class RefusedGlobal(pickle.UnpicklingError):
    """A pickle asks for a function that is not accepted: ``args[0]`` is its full name."""


# The base class would import the functions that a pickle names.
class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # NumPy's inner modules were renamed in version 2.
        full_name = f"{module.replace('numpy.core.', 'numpy._core.')}.{name}"
        if full_name not in _ACCEPTED:
            raise RefusedGlobal(f"{module}.{name}")
        return _ACCEPTED[full_name]


def load_pickle(path: Path, *, trust: bool) -> Any:
    """Read the pickle at ``path``; ``trust`` refuses nothing, and runs code from the file.

    Raises:
        RefusedGlobal: see there; damaged pickles raise most other kinds of errors.
    """
    unpickler = pickle.Unpickler if trust else _TensorUnpickler
    with path.open("rb") as file:
        return unpickler(file, encoding=_ENCODING).load()


def _encode(text: str, encoding: str = _ENCODING) -> bytes:
    """The bytes of an array, which Python 2's protocols write as text."""
    if encoding != _ENCODING:
        raise RefusedGlobal(f"_codecs.encode to {encoding}")
    return text.encode(encoding)


def _rebuild_array(kind: type, shape: tuple[int, ...], code: bytes | str) -> np.ndarray:
    """An empty array, which the pickle then fills."""
    if kind is not np.ndarray:
        raise RefusedGlobal(f"an array of {kind}")
    return np.ndarray(shape, code.decode() if isinstance(code, bytes) else code)


def _rebuild_scalar(dtype: np.dtype, content: bytes) -> np.generic:
    # Objects in a buffer would be pointers.
    if dtype.hasobject:
        raise RefusedGlobal(f"a scalar of {dtype}")
    return np.frombuffer(content, dtype=dtype)[0]


# Each is replaced where the original takes arguments that could be harmful.
_ACCEPTED: dict[str, Callable] = {
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
    "numpy._core.multiarray._reconstruct": _rebuild_array,
    "numpy._core.multiarray.scalar": _rebuild_scalar,
    "numpy._core.numeric._frombuffer": lambda buffer, dtype, shape, order: np.frombuffer(
        buffer, dtype=dtype
    ).reshape(shape, order=order),
    "_codecs.encode": _encode,
    # Without the hooks and the gradient that a tensor may have.
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *_: (
        torch._utils._rebuild_tensor(storage, offset, size, stride)
    ),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    # A tensor's storage is a PyTorch file within the pickle.
    "torch.storage._load_from_bytes": lambda content: torch.load(
        io.BytesIO(content), map_location="cpu", weights_only=True
    ),
}
