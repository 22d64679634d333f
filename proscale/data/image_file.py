"""Faults of image files, by the name of the file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image


@contextmanager
def naming_faults(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within it Pillow's complaints about the image file ``path`` are ValueErrors that name it.

    A file that is not there stays a FileNotFoundError.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    # Pillow reports some damages of PNG files as syntax errors.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error
