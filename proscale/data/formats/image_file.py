"""Opens image files that others have made; errors name the file.

Pillow recognises formats by content, so that a PNG file named ``.jpg`` is read. Some formats it
hands to other programs, and a file of a few kilobytes may claim billions of pixels: only
``FORMATS`` of at most ``PIL.Image.MAX_IMAGE_PIXELS`` pixels are decoded.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from proscale.data.formats.problems import Problem, Reporter, raise_first
from proscale.errors import DataError, MissingFileError
from proscale.utils.types import Size

# Formats that are read, by Pillow's names. EPS, which runs Ghostscript, is none of them.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

MAX_PIXELS = 2**28
"""Pixels that an image may have, 16384×16384: far above what cameras make, and 0.8 GB in memory.

Importing this module makes it Pillow's limit, ``PIL.Image.MAX_IMAGE_PIXELS``, which lies at a third
of that and where Pillow only warns. To read larger images set that, after the import; None lifts
the limit.
"""

Image.MAX_IMAGE_PIXELS = MAX_PIXELS

# Errors of Pillow on damaged files: some damages of PNG files are syntax errors, text chunks
# that swell ValueErrors; a TIFF file may have a fraction, or nothing, where a number belongs.
_DECODING_ERRORS = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@contextmanager
def open_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image; its pixels are decoded, within the context, when they are first asked for.

    Raises:
        MissingFileError: there is no such file.
        DataError: it is no readable image of ``FORMATS``, or it has too many pixels. Also when that
            turns out within the context.
    """
    try:
        # Only FORMATS are tried: Pillow runs other programs for some of the others.
        with (
            PathManager.open(os.fspath(path), "rb") as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            check_size(image.height, image.width, str(path))
            yield image
    except DataError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: there is no such file") from error
    # Other errors are the program's own, and pass.
    except _DECODING_ERRORS as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is none of {', '.join(FORMATS)}"
        raise DataError(f"{path}: not a readable image ({reason})") from error


def check_size(height: int, width: int, where: str) -> None:
    """Raise a DataError that begins with ``where`` if an image has no pixels or too many."""
    # Pillow's own limit only warns below twice its value.
    limit = Image.MAX_IMAGE_PIXELS
    if min(height, width) < 1 or (limit is not None and height * width > limit):
        raise DataError(
            f"{where} has (height, width) {(height, width)}: expected 1 to {limit} pixels, the "
            "value of PIL.Image.MAX_IMAGE_PIXELS"
        )


def read_image(path: str | os.PathLike[str], format: str) -> np.ndarray:
    """Read an image as it is to be seen: turned as its EXIF orientation says, in 8 bits a channel.

    Grey values of 16 bits are divided by 257; transparency is left out.

    Args:
        path: of the file.
        format: of the channels, as Detectron2's ``read_image`` accepts it, such as RGB or BGR.

    Returns:
        (H, W, C); uint8 for RGB, BGR and L (C = 1).

    Raises:
        MissingFileError: there is no such file.
        DataError: see :func:`open_image`; or its values are neither of 8 nor of 16 bits.
    """
    with open_image(path) as image:
        return to_array(image, format, path)


def check_stated_size(
    path: str, size: Size, stated: Size | None, report: Reporter = raise_first
) -> None:
    """Compare the (height, width) of an image as it is read with that of its annotation, if any."""
    if stated is not None and size != stated:
        detail = (
            f"it has (height, width) {size}, turned as its EXIF orientation says: expected "
            f"{stated}, as its annotation states"
        )
        report(Problem("image-size", path, detail))


def to_array(image: Image.Image, format: str, path: str | os.PathLike[str]) -> np.ndarray:
    """An open image as :func:`read_image` gives it; ``path`` is for messages."""
    # Viewers turn images as their EXIF data say, and so do annotators. Without an orientation
    # exif_transpose would copy the image.
    upright = image if exif_orientation(image) == 1 else ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        # 65535 is 255 · 257; 128 rounds.
        values = np.asarray(upright).astype(np.uint32)
        upright = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif upright.mode.startswith(("I", "F")):
        # Integers of 32 bits or floats have no known range.
        raise DataError(
            f"{path}: its pixels have mode {upright.mode}: expected values of 8 or 16 bits"
        )
    return convert_PIL_to_numpy(upright, format)


def exif_orientation(image: Image.Image) -> int:
    """1 for an upright image, 2 to 8 for one that is turned or mirrored when it is read."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def stored_size(path: str | os.PathLike[str]) -> Size:
    """(height, width) of an image as it is read, from the head of its file."""
    with open_image(path) as image:
        # Orientations 5 to 8 exchange height and width.
        turned = exif_orientation(image) >= 5
        return image.size if turned else image.size[::-1]
