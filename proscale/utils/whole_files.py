"""Places for output, tried before the work, and files that are there as a whole or not at all.

A file is written beside its place and moved there when it is complete, so that a reader finds the
old content or the new, also after a crash.
"""

import errno
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proscale.errors import ConfigError, OutputError, UserError, printable
from proscale.utils.untrusted import os_error

# Name, process, and the suffix again.
_PARTIAL = re.compile(r"\..+\.(\d+)\.partial(\.[^.]+)?")

_TRIED = bytes(2**16)  # less room than this is none
_NAME_BYTES = 200  # of the 255 that file systems take, with room for what is put around a name


def try_folder(folder: Path, key: str) -> None:
    """Make a folder and write to it, before there is something to lose.

    Raises:
        ConfigError: that cannot be done; the message names ``key``, a key or option, and why.
    """
    with _tried(folder, key, "expected a folder that can be written"):
        _try(folder)


def try_file(path: Path, key: str, *, is_text: bool = False) -> None:
    """:func:`try_folder` for the folder of a file, which is none itself, nor a pipe or device.

    Those are accepted for what :func:`write_text` writes.
    """
    with _tried(path, key, "expected a file that can be written"):
        if not (is_text and _is_stream(path)):
            _check_replaceable(path)
            _try(path.parent)


def _try(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Permissions do not tell whether a file system is read-only or full.
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(_TRIED)


@contextmanager
def _tried(path: Path, key: str, expected: str) -> Iterator[None]:
    try:
        yield
    # A ValueError for a name with a zero byte.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        value = printable(path, limit=1000)
        raise ConfigError(f"{key} is {value}: {expected} ({reason})") from error


def _check_replaceable(path: Path) -> None:
    """Raise an OSError if a file of this name cannot be there, or is none."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "its name has a zero byte")
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    # Moving a file to /dev/null would replace the device.
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a pipe or device")


@contextmanager
def whole_file(
    path: Path, *, durable: bool = False, raises: type[UserError] = OutputError
) -> Iterator[Path]:
    """A path to write to instead of ``path``, with the same suffix and in the same folder.

    It becomes ``path`` at the end of the block. If that ends with an error, ``path`` stays as it
    was and the new file is removed.

    Args:
        path: its folder has to exist.
        durable: wait until the disk has the content, so that it survives a power failure. This
            takes milliseconds, which is much where thousands of small files are written.

    Raises:
        OutputError: or ``raises``: the system refused, as when the disk is full.
    """
    # In the same folder, because only there a file can be renamed in one step.
    partial = partial_path(path)
    try:
        _check_replaceable(path)
        try:
            yield partial
            if durable:
                # Before the file takes its place: a file system may write names before content.
                _sync(partial)
            os.replace(partial, path)
            if durable:
                _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    # A missing file that was to be read is a UserError of its own.
    except OSError as error:
        if isinstance(error, UserError):
            raise
        words = "what was written before is as it was"
        raise raises(f"{os_error(error, path, 'written')}; {words}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text as a :func:`whole_file`, and to a pipe or device, such as /dev/stdout, directly.

    In UTF-8; bytes of file names that are none are escaped.
    """
    if _is_stream(path):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def _is_stream(path: Path) -> bool:
    return path.is_fifo() or path.is_char_device()


def partial_path(path: Path) -> Path:
    """The file that :func:`whole_file` gives for ``path`` in this process."""
    name = path.name
    # A name that is as long as the file system allows has to become shorter, and stay its own.
    if len(encoded := os.fsencode(name)) > _NAME_BYTES:
        name = f"{os.fsdecode(encoded[: _NAME_BYTES - 8])}{zlib.crc32(encoded):08x}"
    return path.with_name(f".{name}.{os.getpid()}.partial{path.suffix}")


def remove_partial(folder: Path, *, is_locked: bool = False) -> list[str]:
    """Remove the files that died processes have left incomplete in ``folder``; returns names.

    Args:
        folder: its other files are left alone.
        is_locked: whether no other process may be writing to it. Otherwise those of processes of
            this machine that are alive stay.
    """
    left_over = []
    for path in sorted(folder.glob(".*.partial*")):
        found = _PARTIAL.fullmatch(path.name)
        if found and (is_locked or not _is_other_process(int(found[1]))):
            path.unlink(missing_ok=True)
            left_over.append(path.name)
    return left_over


def _is_other_process(number: int) -> bool:
    # A process of this number that died may have been an earlier one's: containers begin at 1.
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
