"""Files that appear when they are complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEFTOVERS = ".*.partial*"
"""Pattern of what a process that died has left in a folder."""


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path with the same suffix to write to instead of ``path``.

    It becomes ``path`` at the end of the context, unless that ends with an error.
    """
    part = path.with_name(f".{path.name}.partial{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
