"""Images of class labels: one channel whose values are the labels, whatever the colours shown.

Detectron2 reads them as grey values, which turns the labels of a palette image into brightnesses.
"""

import os

import numpy as np

from proscale.data.formats.image_file import open_image
from proscale.errors import DataError

_MODES = ("L", "P", "I;16", "I")


def read_label_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the labels (H, W) of an image of 8 bits, with a palette or without, or of 16 bits.

    Returns:
        uint8, uint16 or int32, as the file has it.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is no readable image, or has several channels.
    """
    with open_image(path) as image:
        if image.mode not in _MODES:
            raise DataError(
                f"{path}: labels are an image with one channel, modes {', '.join(_MODES)}; "
                f"this image has mode {image.mode}"
            )
        return np.asarray(image)


def read_palette(path: str | os.PathLike[str]) -> list[list[int]]:
    """The RGB colours of the labels 0, 1, … of a palette image; empty without a palette.

    Raises:
        FileNotFoundError, DataError: see :func:`read_label_image`.
    """
    with open_image(path) as image:
        colors = (image.getpalette("RGB") or []) if image.mode == "P" else []
    return [colors[i : i + 3] for i in range(0, len(colors), 3)]
