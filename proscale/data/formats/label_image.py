"""Maps of integers: label images, whose one channel holds the labels whatever the colours shown.

Detectron2 reads them as grey values, which turns the labels of a palette image into brightnesses.
Readers raise a DataError that names the file.
"""

import os
from collections.abc import Mapping

import numpy as np

from proscale.data.formats.image_file import open_image
from proscale.errors import DataError

_MODES = ("L", "P", "I;16", "I")


def read_label_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the labels (H, W) of an image of 8 bits, with a palette or without, or of 16 bits.

    Returns:
        uint8, uint16 or int32, as the file has it.
    """
    with open_image(path) as image:
        if image.mode not in _MODES:
            raise DataError(
                f"{path}: labels are an image with one channel, modes {', '.join(_MODES)}; "
                f"this image has mode {image.mode}"
            )
        return np.asarray(image)


def read_palette(path: str | os.PathLike[str]) -> list[list[int]]:
    """The RGB colours of the labels 0, 1, … of a palette image; empty without a palette."""
    with open_image(path) as image:
        colors = (image.getpalette("RGB") or []) if image.mode == "P" else []
    return [colors[i : i + 3] for i in range(0, len(colors), 3)]


def relabel(ids: np.ndarray, values: Mapping[int, int], dtype: type) -> np.ndarray:
    """The map (H, W) of ``dtype`` in which every id of a map of integers is replaced by its value.

    Raises:
        ValueError: ids have no value; the message lists them.
    """
    known = np.array(sorted(values))
    # A table indexed by id would have 2^24 rows for panoptic PNG files; the known ids are few.
    index = np.searchsorted(known, ids).clip(max=len(known) - 1)
    # searchsorted gives the place where an unknown id would belong.
    fits = known[index] == ids
    if not fits.all():
        raise ValueError(f"ids {np.unique(ids[~fits]).tolist()}: expected {known.tolist()}")
    return np.array([values[id_] for id_ in known.tolist()], dtype)[index]
