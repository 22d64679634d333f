"""Reads annotation files that others have made; errors name the entry.

A ``file_name`` of ``../../.ssh/id_rsa`` in an annotation file would otherwise be opened, and a
prediction be written beside it, see :func:`path_below`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from detectron2.utils.file_io import PathManager

from proscale.errors import DataError, MissingFileError, shown

# Size of a file that is read: nine times COCO's largest, and then ten times that in memory.
MAX_BYTES = 4 * 2**30

# Keys that an object must have, and the types that their values may have.
Keys = Mapping[str, tuple[type, ...]]

_TYPE_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is larger than ``MAX_BYTES``, no JSON (NaN and Infinity are none), nested too
            deeply to be read, or no object.
    """

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    local = Path(PathManager.get_local_path(os.fspath(path)))
    if not local.exists():
        raise MissingFileError(f"{path}: there is no such file")
    # A file that would fill the memory is refused before it is read.
    size = local.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{path}: it has {size} bytes: expected {MAX_BYTES}")
    try:
        content = json.loads(local.read_bytes(), parse_constant=refuse_constant)
    # json recurses into each [ and {.
    except RecursionError as error:
        raise DataError(f"{path}: not a JSON file (its values are nested too deeply)") from error
    # JSONDecodeError, UnicodeDecodeError, and numbers of thousands of digits.
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: it holds {shown(content)}: expected an object {{…}}")
    return content


def check_lists(
    content: Mapping[str, Any], needed: Mapping[str, Keys], path: str | os.PathLike[str]
) -> None:
    """Raise a DataError if a list is missing, or one of its elements lacks keys or types.

    Readers may take them for granted then. ``needed`` has by list the keys of its elements.
    """
    # Structure first, so that readers may take keys and types for granted.
    for name, keys in needed.items():
        if not isinstance(content.get(name), list):
            there = ", ".join(map(repr, content)) or "nothing"
            raise DataError(f"{path}: it has no list {name!r}; there is {there}")
        check_records(content[name], keys, f"{path}: {name}")


def check_records(records: Sequence[Any], keys: Keys, where: str) -> None:
    """Raise a DataError that begins with ``where`` if an element lacks keys or types."""
    for place, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{where}[{place}] is {shown(record)}: expected an object {{…}}")
        for key, types in keys.items():
            # Not isinstance: JSON's true is no number, though Python's is.
            if type(record.get(key)) not in types:
                found = (
                    f".{key} is {shown(record[key])}" if key in record else f" has no key {key!r}"
                )
                accepted = " or ".join(_TYPE_NAMES[type_] for type_ in types)
                raise DataError(f"{where}[{place}]{found}: expected {accepted}")


def path_below(root: str | os.PathLike[str], name: Any, where: str) -> str:
    """The path of a file that an annotation file names; it need not be there.

    Links are followed: they are made on the machine, by data managers for every single image.

    Raises:
        DataError: ``name`` is no text, or is a path that leaves the folder ``root``; the message
            begins with ``where``.
    """
    # A zero byte would end the name for the operating system.
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{where} is {shown(name)}: expected the name of a file")
    # Backslashes separate folders on Windows, where an annotation file may come from.
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        raise DataError(
            f"{where} is {shown(name)}, which leaves {root}: expected names of files "
            "in that folder, without '..'"
        )
    return os.path.join(root, name)
