"""Opens files that others made: of which kind and size they are, and in which folder.

Everything that a data set, a checkpoint or a run folder brings along is read through this module or
checked by it first. Links are followed: data managers make one for every image.
"""

import logging
import os
import re
import stat
import zipfile
from http.client import HTTPException
from typing import Any

from detectron2.utils.file_io import PathManager

from proscale.errors import (
    CheckpointError,
    DataError,
    MissingFileError,
    UserError,
    printable,
    shown,
)

AnyPath = str | os.PathLike[str]


def check_regular(path: AnyPath, *, raises: type[UserError] = DataError) -> int:
    """The size in bytes of a file that can be read to an end.

    Raises:
        MissingFileError: there is no such file; ``raises`` if that is another class.
        DataError: or ``raises``: it is a folder, a pipe or a device, which may never end or act
            when they are opened; or it cannot be read.
    """
    path = os.fspath(path)
    try:
        status = os.stat(path)
        may_be_read = os.access(path, os.R_OK)
    except FileNotFoundError as error:
        missing = MissingFileError if raises is DataError else raises
        raise missing(f"{path}: there is no such file") from error
    # A ValueError for a name with a zero byte.
    except (OSError, ValueError) as error:
        raise raises(os_error(error, path, "read")) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
        raise raises(f"{path}: it is {kind}: expected a file")
    if not may_be_read:
        raise raises(f"{path}: cannot be read: Permission denied")
    return status.st_size


def read_bounded(path: AnyPath, *, limit: int, raises: type[UserError] = DataError) -> bytes:
    """The content of a file of at most ``limit`` bytes.

    Raises:
        DataError: or ``raises``: the file is larger, or see :func:`check_regular`.
    """
    # A file that would fill the memory is refused before it is read.
    size = check_regular(path, raises=raises)
    if size <= limit:
        try:
            with open(path, "rb") as file:
                # Not all: files of /proc have size 0, and others may grow.
                content = file.read(limit + 1)
        except OSError as error:
            raise raises(os_error(error, path, "read")) from error
        size = max(size, len(content))
    if size > limit:
        raise raises(f"{path}: it has {size} bytes: expected {limit} or fewer")
    return content


def check_archive(path: AnyPath, *, raises: type[UserError] = CheckpointError) -> None:
    """Refuse a ZIP archive that is far larger unpacked: over twice the file and 1 MiB.

    PyTorch stores its members as they are. Other files pass; their reader tells.

    Raises:
        CheckpointError: or ``raises``: the archive is refused, or see :func:`check_regular`.
    """
    size = check_regular(path, raises=raises)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    # zipfile raises any of these on damaged headers.
    except (
        *(zipfile.BadZipFile, ArithmeticError, EOFError, LookupError, OSError, RuntimeError),
        ValueError,
    ):
        return
    if unpacked > 2 * size + 2**20:
        raise raises(
            f"{path}: its {size} bytes unpack to {unpacked}: expected an archive that is "
            "not compressed, as PyTorch writes it"
        )


def fetched(address: str, *, raises: type[UserError]) -> str:
    """The local copy of an address (``https://``, ``detectron2://``) that the user named.

    Raises:
        UserError: ``raises``: it cannot be fetched.
    """
    # Its reason is in the error.
    logging.getLogger("iopath.common.download").setLevel(logging.CRITICAL)
    try:
        return PathManager.get_local_path(address)
    # HTTPException, ValueError: what is no address of the web.
    except (OSError, HTTPException, ValueError) as error:
        raise raises(os_error(error, address, "fetched")) from error


def inside(folder: AnyPath, name: Any, where: str = "a file name") -> str:
    """The path of a file in ``folder`` that another file names; it need not be there.

    A name of ``../../.ssh/id_rsa`` would otherwise be opened, and a result be written beside it.

    Raises:
        DataError: ``name`` is no text, or leaves ``folder``; the message begins with ``where``.
    """
    # A zero byte would end the name for the operating system; no file system has longer names.
    is_text = isinstance(name, str) and name and "\0" not in name
    if not is_text or max(map(len, name.split("/"))) > 255 or len(name) > 4000:
        raise DataError(f"{where} is {shown(name)}: expected the name of a file")
    # Backslashes separate folders on Windows, where the file may come from; below an empty folder
    # https:// would be fetched.
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/") or "://" in name:
        raise DataError(
            f"{where} is {shown(name)}, which leaves {os.fspath(folder)}: expected names of files "
            "in that folder, without '..'"
        )
    return os.path.join(folder, name)


def is_name(value: Any) -> bool:
    """Whether ``value`` can be the name of a class: a text without control characters, which would
    tear tables and pages, and without halves of characters, which cannot be written."""
    return isinstance(value, str) and not re.search("[\x00-\x1f\x7f\ud800-\udfff]", value)


def os_error(error: Exception, path: AnyPath, doing: str) -> str:
    """The sentence for an error of the operating system: "FILE: cannot be ``doing``: reason".

    ``doing`` is "read", "written", "made".
    """
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{printable(os.fspath(path), limit=1000)}: cannot be {doing}: {reason}"
