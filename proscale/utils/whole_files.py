"""Files that are there whole or not at all, and a look at whether a checkpoint still is.

A file is written beside its place and moved there when the disk has it, so that whoever reads it,
after a crash too, finds the old content or the new. PyTorch's files are ZIP archives with a
checksum of every tensor, which PyTorch does not compare when it reads; those written here carry a
digest of all their bytes, too, as the archive's comment.
"""

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from proscale.errors import CheckpointError

PARTIAL = ".partial"
"""Suffix, behind the file's own, of what is being written."""

_DIGEST_NAME = b"sha256:"
_DIGEST_LENGTH = len(_DIGEST_NAME) + 2 * hashlib.sha256().digest_size
# An archive ends with a record of 22 bytes, the last two the length of a comment, and the comment.
_END = b"PK\x05\x06"
_END_LENGTH = 22
_NO_COMMENT = struct.pack("<H", 0)

# What zipfile lets out on archives with damaged headers.
_HEADER_ERRORS = (
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,  # a compression that does not exist
    OSError,  # an offset before the file's start
    RuntimeError,  # claims to be encrypted
    ValueError,
)


def save_archive(path: Path, content: dict[str, Any]) -> None:
    """``torch.save``, atomically and with a digest.

    Raises:
        CheckpointError: see :func:`write_atomically`.
    """

    def write(file: "_Recorder") -> None:
        torch.save(content, file)
        file.add_digest()

    write_atomically(path, write)


def write_atomically(path: Path, write: Callable[["_Recorder"], object]) -> None:
    """Give ``path`` the content that ``write`` writes to the file it is called with.

    Raises:
        CheckpointError: the system refused, as when the disk is full; ``path`` is as it was.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with _recorded(partial.open("wb")) as file:
            write(file)
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: not written: {error.strerror}; what was written before is as it was"
        ) from error


def remove_partial(folder: Path) -> list[str]:
    """Remove what ``write_atomically`` left in ``folder`` when the process died; returns names."""
    left_over = sorted(folder.glob(f"*{PARTIAL}"))
    for path in left_over:
        path.unlink()
    return [path.name for path in left_over]


def is_archive(path: Path) -> bool:
    """Whether ``path`` begins as a ZIP archive does, damaged or not."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def find_damage(path: Path) -> str | None:
    """What is wrong with the archive at ``path``; None if it is whole. Reads all of it.

    By its digest; in files that others have written, by the checksums of what it contains.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = file.seek(max(0, size - _END_LENGTH - _DIGEST_LENGTH))
            tail = file.read()
            end = tail.rfind(_END) + _END_LENGTH
            comment = tail[end:]
            if end >= _END_LENGTH and tail[end - 2 : end] != struct.pack("<H", len(comment)):
                return "it is cut short"
            if not comment.startswith(_DIGEST_NAME):
                return _find_wrong_checksum(path)
            digest = _digest_of(file, start + end - len(_NO_COMMENT))
    except FileNotFoundError:
        return "there is no such file"
    digest.update(_NO_COMMENT)
    return None if comment == _comment(digest) else "its bytes are not those that were written"


def _digest_of(file: IO[bytes], length: int) -> Any:
    """SHA-256 of the first ``length`` bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while length and (block := file.read(min(length, 2**20))):
        digest.update(block)
        length -= len(block)
    return digest


def _find_wrong_checksum(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except zipfile.BadZipFile as error:
        return f"it is cut short or overwritten ({error})"
    except _HEADER_ERRORS as error:
        return f"its headers are wrong ({error})"
    return f"the checksum of {member} is wrong" if member else None


def _comment(digest: Any) -> bytes:
    return _DIGEST_NAME + digest.hexdigest().encode()


@contextmanager
def _recorded(file: IO[bytes]) -> Iterator["_Recorder"]:
    """Close and sync ``file``; raises the first error of a write, whatever came of it."""
    recorder = _Recorder(file)
    with file:
        try:
            yield recorder
        finally:
            if recorder.error is not None:
                raise recorder.error
        file.flush()
        os.fsync(file.fileno())


class _Recorder:
    """Passes writes on until one fails, keeps that error, and digests what passes.

    PyTorch's writer takes an error as a reason to write the rest, and then complains about
    positions.
    """

    def __init__(self, file: IO[bytes]):
        self.error: OSError | None = None
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self._file.write(data)
                self._digest.update(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Left to the end: PyTorch calls it, and an error would pass it by."""

    def add_digest(self) -> None:
        """End the archive that was written with its digest, as its comment."""
        if self.error is None:
            self._file.seek(-len(_NO_COMMENT), os.SEEK_END)
            self._file.write(struct.pack("<H", _DIGEST_LENGTH) + _comment(self._digest))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
