"""Pickles of tensors and arrays, read without running other code.

A pickle names the functions that make its objects, and reading it calls them. ``torch.load`` with
``weights_only`` knows the harmless ones in PyTorch's own files. Files of ``pickle.dump``, as in
Detectron2's and Mask2Former's model zoos, are read here: only functions that make tensors, arrays
and plain containers are accepted, in a form that cannot be asked for anything else.
"""

import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

ARCHIVE = b"PK\x03\x04"
"""How an archive begins: with its first member."""
_UNSUPPORTED = re.compile(r"GLOBAL (\S+)")
# The one function that PyTorch lets a pickle call which fills memory for a number in it.
_FILLS_MEMORY = b"bytearray\n"
# In place of the class, which would make arrays of any size.
_ARRAY = "numpy.ndarray"
# Python 2 wrote arrays as strings in it.
_ENCODING = "latin1"


class RefusedGlobal(pickle.UnpicklingError):
    """A pickle asks for a function that is not accepted: ``args[0]`` is its full name."""


# The other one, in C, makes a table as long as the largest number in a file says.
_PythonUnpickler: Any = pickle._Unpickler


# The base class would import the functions that a pickle names.
class _TensorUnpickler(_PythonUnpickler):
    dispatch: ClassVar = dict(_PythonUnpickler.dispatch)

    def load_build(self) -> None:
        # Attributes of anything else could be those of the functions below.
        if not isinstance(self.stack[-2], np.ndarray | np.dtype | OrderedDict):
            raise RefusedGlobal(f"the state of a {type(self.stack[-2]).__name__}")
        super().load_build()

    def load_bytearray8(self) -> None:
        # The base class fills the memory with zeros before it reads.
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        # NumPy's inner modules were renamed in version 2.
        full_name = f"{module.replace('numpy.core.', 'numpy._core.')}.{name}"
        if full_name not in _ACCEPTED:
            raise RefusedGlobal(f"{module}.{name}")
        return _ACCEPTED[full_name]


def load_torch(source: Path | io.BytesIO, *, is_archive: bool, mmap: bool = False) -> Any:
    """Read a file of ``torch.save``; of an archive, one whose unpacked size is known to be bounded.

    ``mmap`` leaves the tensors of an archive on the disk.

    Raises:
        RefusedGlobal: see there; damaged files raise most other kinds of errors.
    """
    # The part that describes the tensors; files from before PyTorch 1.6 are one piece.
    if is_archive:
        with zipfile.ZipFile(source) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            pickled = b"".join(map(archive.read, names))
    else:
        pickled = source.read_bytes() if isinstance(source, Path) else source.getvalue()
    if _FILLS_MEMORY in pickled:
        raise RefusedGlobal("builtins.bytearray")
    try:
        return torch.load(source, map_location="cpu", mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        # The name that is refused; PyTorch's message goes on with how to read the file anyway.
        if unsupported := _UNSUPPORTED.search(str(error)):
            raise RefusedGlobal(unsupported[1]) from error
        raise


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


def _rebuild_array(kind: object, shape: tuple[int, ...], code: bytes | str) -> np.ndarray:
    """An empty array, which the pickle then fills."""
    if kind is not _ARRAY or shape != (0,):
        raise RefusedGlobal(f"an array of {kind}")
    return np.ndarray(shape, code.decode() if isinstance(code, bytes) else code)


def _rebuild_scalar(dtype: np.dtype, content: bytes) -> np.generic:
    # Objects in a buffer would be pointers.
    if dtype.hasobject:
        raise RefusedGlobal(f"a scalar of {dtype}")
    return np.frombuffer(content, dtype=dtype)[0]


def _load_storage(content: bytes) -> Any:
    """A tensor's storage: a PyTorch file within the pickle, which is no archive."""
    if content.startswith(ARCHIVE):
        raise RefusedGlobal("an archive")
    return load_torch(io.BytesIO(content), is_archive=False)


# Each is replaced where the original takes arguments that could be harmful.
_ACCEPTED: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": np.dtype,
    "numpy.ndarray": _ARRAY,
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
    "torch.storage._load_from_bytes": _load_storage,
}
