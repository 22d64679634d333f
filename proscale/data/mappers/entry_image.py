"""Reads the image of a data set's entry, and makes sure that it is of the size the entry states."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from proscale.data.formats.image_file import read_image
from proscale.errors import DataError


def read_entry_image(entry: Mapping[str, Any], image_format: str) -> np.ndarray:
    """The image (H, W, C) of ``entry["file_name"]``, see ``read_image``.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it cannot be read, or ``height`` and ``width`` of the entry are not its own.
    """
    image = read_image(entry["file_name"], image_format)
    height, width = image.shape[:2]
    stated = entry.get("height", height), entry.get("width", width)
    if stated != (height, width):
        raise DataError(
            f"{entry['file_name']}: it has (height, width) {(height, width)}, turned as its EXIF "
            f"orientation says, but its annotation states {stated}"
        )
    return image
