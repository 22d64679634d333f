"""Which files to predict, and what their results are called."""

import glob
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from proscale.data.datasets.semantic_folders import IMAGE_SUFFIXES

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
"""Endings that tell videos from images, in lower or upper case."""


@dataclass(frozen=True)
class Source:
    """A file to predict.

    Attributes:
        path: of the image or video.
        name: of its results, without suffix; no two sources share one.
        image_id: of the image in JSON files. Videos have none, their frames do.
    """

    path: Path
    name: str
    image_id: int | None

    @property
    def is_video(self) -> bool:
        return is_video(self.path)


def is_video(path: Path) -> bool:
    """Whether a file's name is a video's."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(inputs: Sequence[str], *, leave_out: Path) -> list[Source]:
    """The files that a user means, each once, those of a folder or pattern ordered by name.

    An image whose name is a number, as COCO's, has that for its id; others are numbered on from the
    highest. A second file ``street.png`` has the name ``street_2``, and so on.

    Args:
        inputs: images, videos, folders (everything below them with a suffix in ``IMAGE_SUFFIXES``
            or ``VIDEO_SUFFIXES``), and patterns with ``*``, ``?``, ``[…]`` and ``**``.
        leave_out: folder whose files are not taken from folders and patterns: where results go.

    Raises:
        ValueError: there is nothing that an input names.
    """
    paths = list(dict.fromkeys(path for text in inputs for path in _files(text, leave_out)))
    names = UniqueNames()
    images = [path for path in paths if not is_video(path)]
    ids = dict(zip(images, _image_ids(images), strict=True))
    return [Source(path, names.add(path.stem), ids.get(path)) for path in paths]


class UniqueNames:
    """Names of files, no two of them the same in upper or lower case.

    Args:
        names: those that are taken.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._taken = {name.casefold() for name in names}

    def add(self, name: str) -> str:
        """Take a name, with ``_2``, ``_3``, … behind it if it is taken already."""
        candidate, number = name, 1
        while candidate.casefold() in self._taken:
            number += 1
            candidate = f"{name}_{number}"
        self._taken.add(candidate.casefold())
        return candidate


def _files(text: str, leave_out: Path) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if _is_wanted(file)]
    elif glob.has_magic(text):
        matches = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))
        found = [file for file in matches if _is_wanted(file)]
    else:
        raise ValueError(
            f"INPUT {text}: there is no such file: expected images, videos, folders and patterns"
        )
    results = leave_out.resolve()
    found = [file for file in found if results not in file.resolve().parents]
    if not found:
        raise ValueError(
            f"INPUT {text}: no images or videos ({', '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))})"
        )
    return found


def _is_wanted(path: Path) -> bool:
    return path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and os.path.isfile(path)


def _image_ids(images: Sequence[Path]) -> list[int]:
    numbers = [int(path.stem) if path.stem.isdecimal() else None for path in images]
    free = itertools.count(max((n for n in numbers if n is not None), default=0) + 1)
    seen: set[int] = set()
    ids = []
    for number in numbers:
        ids.append(next(free) if number is None or number in seen else number)
        seen.add(ids[-1])
    return ids
