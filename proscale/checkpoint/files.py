"""Checkpoint files: PyTorch's ``.pth`` and safetensors, chosen by suffix.

Pickles can run code when they are read, so that only tensors and plain values are accepted in them.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from proscale.checkpoint.convert import CheckpointError

PICKLES = (".pth", ".pt", ".bin")
SAFETENSORS = ".safetensors"
_UNSUPPORTED = re.compile(r"GLOBAL (\S+)")


def read_checkpoint(path: str | Path) -> dict:
    """What ``path`` holds, on the CPU: tensors by name, or whatever else was saved with them.

    Raises:
        CheckpointError: there is no such file; its suffix or content is not accepted.
    """
    path = Path(path)
    suffix = check_suffix(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if suffix == SAFETENSORS:
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: it is no safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # PyTorch's message goes on with how to read the file nevertheless.
        unsupported = _UNSUPPORTED.search(str(error))
        if unsupported is None:
            reason = (str(error).splitlines() or ["it is empty"])[0]
            raise CheckpointError(f"{path}: it is no checkpoint: {reason}") from error
        raise CheckpointError(
            f"{path}: refused, because it has {unsupported[1]} in it: reading anything but tensors "
            "and plain values from a pickle can run code that came with it"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: it holds a {type(content).__name__}: accepts a dictionary")
    return dict(content)


def write_checkpoint(
    path: str | Path, state_dict: Mapping[str, Tensor], *, container: str | None
) -> None:
    """Write tensors to ``path``, folders included; in a pickle below the key ``container``.

    Raises:
        CheckpointError: the suffix is not accepted.
    """
    path = Path(path)
    suffix = check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == SAFETENSORS:
        save_file({name: tensor.contiguous() for name, tensor in state_dict.items()}, path)
    else:
        torch.save({container: dict(state_dict)} if container else dict(state_dict), path)


def check_suffix(path: Path) -> str:
    """The suffix of ``path``.

    Raises:
        CheckpointError: it is no checkpoint's.
    """
    if path.suffix not in (*PICKLES, SAFETENSORS):
        raise CheckpointError(f"{path}: accepts files {', '.join((*PICKLES, SAFETENSORS))}")
    return path.suffix
