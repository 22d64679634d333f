"""Checkpoint files: PyTorch's ``.pth``, plain pickles and safetensors, chosen by suffix.

Pickles can run code when they are read, so that only tensors and plain values are accepted in them
unless the user trusts whoever wrote them.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from proscale.checkpoint.pickles import RefusedGlobal, load_pickle, load_tensor_pickle
from proscale.errors import CheckpointError
from proscale.utils.whole_files import find_damage, is_archive

TORCH = (".pth", ".pt", ".bin")
PICKLE = ".pkl"
SAFETENSORS = ".safetensors"
READABLE = (*TORCH, PICKLE, SAFETENSORS)
WRITABLE = (*TORCH, SAFETENSORS)

_UNSUPPORTED = re.compile(r"GLOBAL (\S+)")
_WEIGHTS_ONLY = re.compile(r"WeightsUnpickler error: (.+)")
# What unpicklers let out on damaged files.
_DAMAGED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_checkpoint(path: str | Path, *, trust: bool = False) -> dict:
    """What ``path`` holds, on the CPU: tensors by name, or whatever else was saved with them.

    Args:
        path: of one of :data:`READABLE`.
        trust: read pickles that hold anything else than tensors, arrays and plain values, too,
            which runs whatever code is in them.

    Raises:
        CheckpointError: there is no such file; its suffix or content is not accepted.
    """
    path = Path(path)
    suffix = check_suffix(path, READABLE)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if suffix == SAFETENSORS:
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: it is no safetensors file: {error}") from error
    if is_archive(path) and (damage := find_damage(path)):
        raise CheckpointError(f"{path}: it is damaged: {damage}")
    try:
        content = _load_pickle(path, trust=trust)
    except _DAMAGED as error:
        refused = _refused_global(error)
        if refused is None:
            raise CheckpointError(f"{path}: it is no checkpoint: {_reason(error)}") from error
        raise CheckpointError(
            f"{path}: refused, because it has {refused} in it: reading anything but tensors and "
            "plain values from a pickle can run code that came with it. If you trust its author: "
            "MODEL.TRUST_WEIGHTS True, or --trust of `proscale convert`"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: it holds a {type(content).__name__}: expected a dictionary")
    return dict(content)


def write_checkpoint(
    path: str | Path, state_dict: Mapping[str, Tensor], *, container: str | None
) -> None:
    """Write tensors to ``path``, folders included; in a pickle below the key ``container``.

    Raises:
        CheckpointError: the suffix is not accepted.
    """
    path = Path(path)
    suffix = check_suffix(path, WRITABLE)
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == SAFETENSORS:
        # Copies, because it takes no two tensors of the same memory, as tied weights have it.
        whole = torch.contiguous_format
        save_file(
            {name: tensor.clone(memory_format=whole) for name, tensor in state_dict.items()}, path
        )
    else:
        torch.save({container: dict(state_dict)} if container else dict(state_dict), path)


def check_suffix(path: Path, accepted: tuple[str, ...]) -> str:
    """The suffix of ``path``.

    Raises:
        CheckpointError: it is not accepted.
    """
    if path.suffix not in accepted:
        raise CheckpointError(f"{path}: expected files {', '.join(accepted)}")
    return path.suffix


def _load_pickle(path: Path, *, trust: bool) -> Any:
    if path.suffix != PICKLE or is_archive(path):
        return torch.load(path, map_location="cpu", weights_only=not trust)
    return load_pickle(path) if trust else load_tensor_pickle(path)


def _refused_global(error: Exception) -> str | None:
    """What a pickle was refused for; None if that is not why it was not read."""
    if isinstance(error, RefusedGlobal):
        return error.args[0]
    # PyTorch's message goes on with how to read the file nevertheless.
    unsupported = _UNSUPPORTED.search(str(error))
    return unsupported[1] if unsupported else None


def _reason(error: Exception) -> str:
    text = str(error)
    inner = _WEIGHTS_ONLY.search(text)
    return inner[1] if inner else (text.splitlines() or ["it is empty"])[0]
