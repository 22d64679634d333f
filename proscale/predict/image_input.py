"""Pictures as users have them, read as evaluation reads them."""

import os

import numpy as np
from PIL import Image

from proscale.data.formats.image_file import read_image, to_array

ImageInput = str | os.PathLike[str] | np.ndarray | Image.Image
"""A file, RGB colours ``(H, W, 3)`` uint8, or a Pillow image of any mode."""


def read_rgb(image: ImageInput) -> np.ndarray:
    """RGB colours ``(H, W, 3)`` uint8.

    Files and Pillow images are turned as their EXIF data say; greyscale (of 8 or 16 bits), palette
    and CMYK images are converted, transparency is left out; see
    ``proscale.data.formats.image_file``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no readable image, or an array has another shape or type.
        TypeError: it is none of ``ImageInput``.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"the image is an array of shape {image.shape} and type {image.dtype}: expected "
                "(H, W, 3) uint8 in the order RGB"
            )
        return image
    if isinstance(image, Image.Image):
        return to_array(image, "RGB", "the image")
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, "RGB")
    raise TypeError(
        f"the image is of type {type(image).__name__}: expected a path, an array (H, W, 3) uint8 "
        "in the order RGB, a Pillow image, or a list of these"
    )
