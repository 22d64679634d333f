"""Segment ids as colours: the PNG files of COCO's panoptic format.

A pixel of colour (R, G, B) has the segment id R + 256·G + 256²·B
(https://cocodataset.org/#format-data, “Panoptic Segmentation”). Files that are missing or no RGB
images raise a DataError, ids that no colour can hold a ValueError.
"""

import os

import numpy as np
from PIL import Image

from proscale.data.formats.image_file import open_image
from proscale.errors import DataError

# Id of pixels that belong to no segment.
VOID = 0

# The largest segment id that a pixel can hold.
MAX_ID = 256**3 - 1


def rgb_to_id(rgb: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 → segment ids (...) uint32, 0 to ``MAX_ID``.

    Raises:
        ValueError: ``rgb`` is not an uint8 array with three channels last.
    """
    if rgb.dtype != np.uint8 or rgb.shape[-1:] != (3,):
        raise ValueError(f"expected (..., 3) uint8 colours, got {rgb.shape} {rgb.dtype}")
    # Widened first: 255 · 256² does not fit into 8 bits.
    red, green, blue = np.moveaxis(rgb, -1, 0).astype(np.uint32)
    return red | green << 8 | blue << 16


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Segment ids (...) of any integer type, 0 to ``MAX_ID`` → colours (..., 3) uint8.

    Raises:
        ValueError: ``ids`` is not an integer array or leaves that range.
    """
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"segment ids must be integers, got {ids.dtype}")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= MAX_ID:
        raise ValueError(f"segment ids must be 0 to {MAX_ID}, got {ids.min()} to {ids.max()}")
    ids = ids.astype(np.uint32)
    return np.stack([ids, ids >> 8, ids >> 16], axis=-1).astype(np.uint8)


def read_panoptic_png(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the segment ids (H, W) uint32 of a panoptic PNG."""
    with open_image(path) as image:
        if image.mode != "RGB":
            raise DataError(f"{path}: a panoptic PNG has mode RGB, this image {image.mode}")
        # Pillow holds a fourth byte per pixel: with it, ids are there already, to be masked out.
        ids = np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<u4") & MAX_ID
        return ids.reshape(image.height, image.width)


def write_panoptic_png(path: str | os.PathLike[str], ids: np.ndarray) -> None:
    """Write segment ids (H, W) as a panoptic PNG."""
    try:
        rgb = id_to_rgb(ids)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    Image.fromarray(rgb).save(path, format="PNG")
