"""Reads annotation files that others have made; errors name the entry."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from proscale.data.formats.problems import first_few
from proscale.errors import DataError, printable, shown
from proscale.utils.untrusted import AnyPath, fetched, read_bounded

# Size of a file that is read: nine times COCO's largest, and then ten times that in memory.
MAX_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Kind:
    """The values that a key may have, and what messages call them.

    Attributes:
        text: completes "expected".
        accepts: whether a value is one of them.
        is_needed: else the key may be left out.
    """

    text: str
    accepts: Callable[[Any], bool]
    is_needed: bool = True


# Keys of an object, and the values that they may have.
Keys = Mapping[str, Kind]

# By exact type: JSON's true is no number, though Python's is. Larger numbers overflow arrays.
_INTEGERS = range(-(2**63), 2**63)
INTEGER = Kind("an integer of 64 bits", lambda v: type(v) is int and v in _INTEGERS)
NUMBER = Kind("a number up to 1e300", lambda v: type(v) in (int, float) and -1e300 < v < 1e300)
TEXT = Kind("a text", lambda v: isinstance(v, str) and not re.search("[\ud800-\udfff]", v))
NUMBERS = Kind("a list of numbers", lambda v: isinstance(v, list) and all(map(NUMBER.accepts, v)))
BOX = Kind("[x, y, width, height]", lambda v: NUMBERS.accepts(v) and len(v) == 4)
ID = Kind("an integer or a text", lambda v: INTEGER.accepts(v) or TEXT.accepts(v))
LIST = Kind("a list", lambda v: isinstance(v, list))


def read_json(path: AnyPath) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is larger than ``MAX_BYTES``, no JSON (NaN and Infinity are none), nested too
            deeply to be read, or no object; or see :func:`read_bounded`.
    """
    value = _read_value(path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: it holds {shown(value)}: expected an object {{…}}")
    return value


def read_json_records(path: AnyPath, keys: Keys) -> list[dict[str, Any]]:
    """The list of objects with these keys that a JSON file holds, as COCO's files of results.

    Raises:
        DataError: it is no such list; and see :func:`read_json`.
    """
    value = _read_value(path)
    if not isinstance(value, list):
        raise DataError(f"{path}: it holds {shown(value)}: expected a list […]")
    check_records(value, keys, str(path))
    return value


def _read_value(path: AnyPath) -> Any:

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    content = read_bounded(fetched(str(path), raises=DataError), limit=MAX_BYTES)
    try:
        return json.loads(content, parse_constant=refuse_constant)
    # json recurses into each [ and {.
    except RecursionError as error:
        raise DataError(f"{path}: not a JSON file (its values are nested too deeply)") from error
    # JSONDecodeError, UnicodeDecodeError, and numbers of thousands of digits.
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file ({error})") from error


def check_lists(content: Mapping[str, Any], needed: Mapping[str, Keys], path: AnyPath) -> None:
    """Raise a DataError if a list is missing, or one of its elements lacks keys or values.

    Readers may take them for granted then. ``needed`` has by list the keys of its elements.
    """
    # Structure first, so that readers may take keys and values for granted.
    for name, keys in needed.items():
        if not isinstance(content.get(name), list):
            # Files of other programs, as VIA's, have a key for every image.
            there = first_few(repr(printable(key, 30)) for key in content) or "nothing"
            raise DataError(
                f"{path}: it has no list {name!r}: expected a file of COCO's format; "
                f"there is {there}"
            )
        check_records(content[name], keys, f"{path}: {name}")


def check_records(records: Sequence[Any], keys: Keys, where: str) -> None:
    """Raise a DataError that begins with ``where`` if an element lacks keys or values."""
    for place, record in enumerate(records):
        if not isinstance(record, dict):
            raise DataError(f"{where}[{place}] is {shown(record)}: expected an object {{…}}")
        for key, kind in keys.items():
            if key not in record:
                if not kind.is_needed:
                    continue
                found = f" has no key {key!r}"
            elif kind.accepts(record[key]):
                continue
            else:
                found = f".{key} is {shown(record[key])}"
            raise DataError(f"{where}[{place}]{found}: expected {kind.text}")
