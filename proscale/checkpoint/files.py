"""Checkpoint files: PyTorch's ``.pth``, plain pickles and safetensors, chosen by suffix.

Pickles can run code when they are read. Only tensors and plain values are accepted in them, unless
the user trusts their author. A file is refused, too, that would need far more memory than it has
bytes, or whose tensors are none that a model could take.

PyTorch's files are ZIP archives with a checksum of every tensor, which PyTorch does not compare
when it reads. Those written here also carry a SHA-256 digest of all their bytes as the archive's
comment, and checkpoints of a training their iteration, to be found without reading the tensors.
"""

import hashlib
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from proscale.checkpoint.pickles import ARCHIVE, RefusedGlobal, load_pickle, load_torch
from proscale.checkpoint.tensors import check_tensors
from proscale.errors import CheckpointError, printable
from proscale.utils.untrusted import check_archive, check_regular
from proscale.utils.whole_files import whole_file

TORCH = (".pth", ".pt", ".bin")
PICKLE = ".pkl"
SAFETENSORS = ".safetensors"
READABLE = (*TORCH, PICKLE, SAFETENSORS)
WRITABLE = (*TORCH, SAFETENSORS)

# How files begin that are taken for checkpoints.
_STRANGERS = (
    (re.compile(rb"\Z"), "empty"),
    (re.compile(rb"\s*<"), "a web page: download the file itself"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS: run git lfs pull"),
    (re.compile(rb"\s*[{[]"), "a text file"),
    (re.compile(rb"\x1f\x8b|\x28\xb5\x2f\xfd|BZh|\xfd7zXZ"), "a compressed file: unpack it"),
)
# PyTorch's files from before it wrote archives have this number near their beginning.
_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
# Readers raise any of these on damaged files.
DAMAGED = (
    *(pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError),
    *(AssertionError, MemoryError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, struct.error, zipfile.BadZipFile, zlib.error),
)

_DIGEST_NAME, _ITERATION_NAME = b"sha256:", b" iteration:"
_DIGEST_LENGTH = len(_DIGEST_NAME) + 2 * hashlib.sha256().digest_size
_LONGEST_COMMENT = _DIGEST_LENGTH + len(_ITERATION_NAME) + 20
_NUMBERED = re.compile(r"model_(\d{7})\.pth")
# An archive ends with a record of 22 bytes, the last two the length of a comment, and the comment.
_END = b"PK\x05\x06"
_END_LENGTH = 22
_NO_COMMENT = struct.pack("<H", 0)
# zipfile raises these on damaged headers: OSError for an offset before the file's start,
# RuntimeError for a claim to be encrypted and for an unknown compression.
_HEADER_ERRORS = (zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)


def read_checkpoint(path: str | Path, *, trust: bool = False) -> dict[str, Any]:
    """Read ``path`` to the CPU: tensors by name, and the values saved with them.

    Args:
        path: of one of :data:`READABLE`.
        trust: read pickles that hold anything else than tensors, arrays and plain values, too,
            which runs the code in them.

    Raises:
        CheckpointError: there is no such file; its suffix or content is not accepted.
    """
    path = Path(path)
    suffix = check_suffix(path, READABLE)
    if not path.exists():
        raise CheckpointError(f"there is no file {printable(path, limit=None)}")
    size = check_regular(path, raises=CheckpointError)
    with path.open("rb") as file:
        beginning = file.read(100)
    is_archive = beginning.startswith(ARCHIVE)
    # PyTorch reads a damaged archive without a word where the damage is within a tensor.
    if is_archive and (damage := find_damage(path)):
        raise CheckpointError(f"{path}: it is damaged: {damage}")
    try:
        if suffix == SAFETENSORS:
            content = load_file(path)
        elif suffix == PICKLE and not is_archive:
            content = load_pickle(path, trust=trust)
        elif not is_archive and _MAGIC not in beginning:
            raise ValueError("expected a file of torch.save; plain pickles have the suffix .pkl")
        elif trust:
            content = torch.load(path, map_location="cpu", weights_only=False)
        else:
            content = load_torch(path, is_archive=is_archive)
    except RefusedGlobal as error:
        raise CheckpointError(
            f"{path}: refused, because it has {printable(error.args[0])} in it: reading anything "
            "but tensors and plain values from a pickle can run code that came with it. If you "
            "trust its author: MODEL.TRUST_WEIGHTS True, or --trust of `proscale convert`"
        ) from error
    except DAMAGED as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        kind = next((kind for start, kind in _STRANGERS if start.match(beginning)), None)
        # PyTorch's own reason is advice to read the file without care.
        if kind is None and "weights_only" in reason:
            kind = "damaged, or has more than tensors and plain values in it"
            if "TorchScript" in reason:
                kind = "a TorchScript program: expected a file of torch.save"
        reason = f"it is {kind}" if kind else printable(reason)
        raise CheckpointError(f"{path}: it is no checkpoint: {reason}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: it holds a {type(content).__name__}: expected a dictionary")
    check_tensors(path, content, size)
    return dict(content)


def write_checkpoint(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    *,
    container: str | None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to ``path``, folders included; in a pickle below the key ``container``.

    ``texts`` are written besides, such as the model's description; a pickle needs a container then.

    Raises:
        CheckpointError: the suffix is not accepted; or see :func:`replacing`.
    """
    path = Path(path)
    suffix = check_suffix(path, WRITABLE)
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix != SAFETENSORS:
        content = {container: dict(state_dict)} if container else dict(state_dict)
        save_archive(path, {**content, **(texts or {})})
        return
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    state = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
    }
    with replacing(path) as partial:
        save_file(state, partial, dict(texts) if texts else None)


def save_archive(path: Path, content: Mapping[str, Any], *, iteration: int | None = None) -> None:
    """``torch.save`` of ``content``, with a digest and by :func:`replacing`.

    Args:
        path: of the file.
        content: tensors and plain values by name.
        iteration: for :func:`stored_iteration`.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        with Recorder.of(file) as recorder:
            torch.save(content, cast(IO[bytes], recorder))
        # End the archive with its digest, in place of the empty comment.
        file.seek(-len(_NO_COMMENT), os.SEEK_END)
        more = b"" if iteration is None else _ITERATION_NAME + b"%d" % iteration
        comment = _comment(recorder.digest, more)
        file.write(struct.pack("<H", len(comment)) + comment)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """:func:`~proscale.utils.whole_files.whole_file` on the disk for good.

    Raises:
        CheckpointError: the system refused, as when the disk is full; ``path`` is as it was.
    """
    with whole_file(path, durable=True, raises=CheckpointError) as partial:
        try:
            yield partial
        except SafetensorError as error:
            raise OSError(str(error)) from error


def check_suffix(path: Path, accepted: tuple[str, ...]) -> str:
    """The suffix of ``path``, if it is accepted."""
    if path.suffix not in accepted:
        raise CheckpointError(f"{path}: expected files {', '.join(accepted)}")
    return path.suffix


def find_damage(path: Path) -> str | None:
    """What is wrong with the archive at ``path``; None if it is intact. Reads all of it.

    By its digest; in files of other programs, by the checksums of their members.
    """
    try:
        check_archive(path)
    except CheckpointError as error:
        return str(error).removeprefix(f"{path}: ")
    try:
        with path.open("rb") as file:
            length, stated, comment = _read_end(file)
            if length and stated != struct.pack("<H", len(comment)):
                return "it is cut short"
            # Files of other programs have no digest, but a checksum of every member.
            if not comment.startswith(_DIGEST_NAME):
                return _find_wrong_checksum(file)
            # What the size was taken from is read as PyTorch reads it.
            if damage := _find_wrong_checksum(file, only_headers=True):
                return damage
            # The digest was taken before the archive had a comment.
            file.seek(0)
            length, digest = length - len(_NO_COMMENT), hashlib.sha256()
            for place in range(0, length, 2**20):
                digest.update(file.read(min(2**20, length - place)))
            digest.update(_NO_COMMENT)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    is_intact = comment == _comment(digest, comment[_DIGEST_LENGTH:])
    return None if is_intact else "its bytes are not those that were written"


def stored_iteration(path: Path) -> int:
    """The iteration that a checkpoint was saved after; -1 if nothing tells. Reads no tensors."""
    try:
        with path.open("rb") as file:
            *_, comment = _read_end(file)
        digest, found, iteration = comment.partition(_ITERATION_NAME)
        if found and digest.startswith(_DIGEST_NAME):
            return int(iteration)
        # Files of other programs and earlier versions have it inside. Tensors stay on the disk.
        check_archive(path)
        content = load_torch(path, is_archive=True, mmap=True)
        if isinstance(content["iteration"], int):
            return content["iteration"]
    except (*DAMAGED, OSError):
        pass
    number = _NUMBERED.fullmatch(path.name)
    return int(number[1]) if number else -1


def _read_end(file: IO[bytes]) -> tuple[int, bytes, bytes]:
    """An archive's length without its comment, the comment's length as stated, and the comment.

    Of a file that does not end as an archive: 0 and nothing.
    """
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - _END_LENGTH - _LONGEST_COMMENT))
    tail = file.read()
    end = tail.rfind(_END) + _END_LENGTH
    if end < _END_LENGTH:
        return 0, b"", b""
    return start + end, tail[end - len(_NO_COMMENT) : end], tail[end:]


def _find_wrong_checksum(file: IO[bytes], *, only_headers: bool = False) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            member = None if only_headers else archive.testzip()
    except zipfile.BadZipFile as error:
        return f"it is cut short or overwritten ({error})"
    except _HEADER_ERRORS as error:
        return f"its headers are wrong ({error})"
    return f"the checksum of {member} is wrong" if member else None


def _comment(digest: "hashlib._Hash", more: bytes) -> bytes:
    """An archive's comment: its digest, which ``more`` is included in, and ``more``."""
    whole = digest.copy()
    whole.update(more)
    return _DIGEST_NAME + whole.hexdigest().encode() + more


class Recorder:
    """A file for PyTorch's writer: passes writes on until one fails, and digests what passes.

    After a failed write PyTorch's writer goes on, and then complains about positions, or aborts the
    process.
    """

    def __init__(self, file: IO[bytes]):
        self.error: OSError | None = None
        self._file = file
        self.digest = hashlib.sha256()

    @classmethod
    @contextmanager
    def of(cls, file: IO[bytes]) -> Iterator[Self]:
        """A recorder; at the end of the block the error of a write is raised."""
        recorder = cls(file)
        try:
            yield recorder
        finally:
            # PyTorch's own complaint about a failed write would hide the reason.
            if recorder.error is not None:
                raise recorder.error

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self._file.write(data)
                self.digest.update(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Left to the end: PyTorch calls it, and ignores its errors."""
