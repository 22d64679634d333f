"""Files that are there as a whole or not at all.

A file is written beside its place and moved there when it is complete, so that a reader finds the
old content or the new, also after a crash.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = ".partial"
PARTIAL_FILES = f".*{_PARTIAL}*"
"""Pattern of the files that are not complete."""


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path to write to instead of ``path``, with the same suffix and in the same folder.

    It becomes ``path`` at the end of the block. If that ends with an error, ``path`` stays as it
    was and the new file is removed.

    Args:
        path: its folder has to exist.
        durable: wait until the disk has the content, so that it survives a power failure. This
            takes milliseconds, which is much where thousands of small files are written.
    """
    # In the same folder, because only there a file can be renamed in one step.
    partial = partial_path(path)
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


def partial_path(path: Path) -> Path:
    """The file that :func:`whole_file` gives for ``path``."""
    return path.with_name(f".{path.name}{_PARTIAL}{path.suffix}")


def remove_partial(folder: Path) -> list[str]:
    """Remove the files that died processes have left incomplete in ``folder``; returns names."""
    left_over = sorted(folder.glob(PARTIAL_FILES))
    for path in left_over:
        path.unlink()
    return [path.name for path in left_over]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
