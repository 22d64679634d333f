"""Reads images, label images and panoptic PNG files that others have made; errors name the file.

Pillow recognises formats by content, so that a PNG file named ``.jpg`` is read. Some formats it
hands to other programs, and a file of a few kilobytes may claim billions of pixels: only
``FORMATS`` are decoded that take at most ``$PROSCALE_MAX_IMAGE_BYTES`` bytes of memory.

A label image has the labels in its one channel, whatever the colours shown; Detectron2 reads them
as grey values, which turns the labels of a palette image into brightnesses. A pixel of colour
(R, G, B) of a panoptic PNG has the segment id R + 256·G + 256²·B
(https://cocodataset.org/#format-data, “Panoptic Segmentation”).
"""

import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from proscale.data.formats.problems import Problem, Reporter, raise_first
from proscale.errors import ConfigError, DataError, UserError, shown
from proscale.utils.types import Size
from proscale.utils.untrusted import check_regular, fetched

# Formats that are read, by Pillow's names. EPS, which runs Ghostscript, is none of them.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

# Modes of label images, and those that are read as they are meant.
_MODES = ("L", "P", "I;16", "I")
GREY_MODES = ("1", "LA", "RGB", "RGBA")

# Ids of panoptic PNG files: of pixels that belong to no segment, and the largest.
VOID = 0
MAX_ID = 256**3 - 1

MAX_IMAGE_BYTES = "PROSCALE_MAX_IMAGE_BYTES"
"""Environment variable: memory that decoding one image, or one frame of a video, may take."""

DEFAULT_IMAGE_BYTES = 2**30
"""Enough for 153 million pixels of a PNG or JPEG file, above what cameras make."""

# A pixel of colour while it is decoded: four bytes in Pillow, three in the array.
_COLOR_BYTES = 7
# Bytes of Pillow's other modes.
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
# Bytes of the decoders that hold a whole image besides, measured: for each band, or for all.
_JPEG2000_BYTES, _WEBP_BYTES, _PROGRESSIVE_BYTES = 5, 12, 2
# Scans of a progressive JPEG file. Usual are 10; each takes as long as all pixels do.
_MAX_SCANS = 100
_SCAN = b"\xff\xda"
# Larger images are converted by strips, so that no copy of the whole is made.
_STRIP_PIXELS = 2**20

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
        local = fetched(os.fspath(path), raises=DataError)
        check_regular(local)
        # Pillow's own limit counts pixels, and lies lower.
        if Image.MAX_IMAGE_PIXELS is not None:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, _max_bytes())
        # Only FORMATS are tried: Pillow runs other programs for some of the others.
        with open(local, "rb") as file, Image.open(file, formats=FORMATS) as image:
            check_size(image.height, image.width, str(path), _bytes_per_pixel(image))
            if "progressive" in image.info:
                _check_scans(local)
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        expected = f"expected {_max_bytes()} bytes or fewer, the value of {MAX_IMAGE_BYTES}"
        raise DataError(f"{path} is too large to be decoded ({error}): {expected}") from error
    # Other errors are the program's own, and pass.
    except _DECODING_ERRORS as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is none of {', '.join(FORMATS)}"
        raise DataError(f"{path}: not a readable image ({reason})") from error


def check_size(height: int, width: int, where: str, bytes_per_pixel: int = _COLOR_BYTES) -> None:
    """Raise a DataError that begins with ``where`` if an image has no pixels or too many."""
    limit, size = _max_bytes(), height * width * bytes_per_pixel
    if min(height, width) < 1 or size > limit:
        raise DataError(
            f"{where} has (height, width) {(height, width)}, {size} bytes when it is decoded: "
            f"expected 1 to {limit}, the value of {MAX_IMAGE_BYTES}"
        )


def _max_bytes() -> int:
    text = os.environ.get(MAX_IMAGE_BYTES) or str(DEFAULT_IMAGE_BYTES)
    if not re.fullmatch("[1-9][0-9]{0,17}", text):
        raise ConfigError(f"{MAX_IMAGE_BYTES} is {shown(text)}: expected a number of bytes")
    return int(text)


def _bytes_per_pixel(image: Image.Image) -> int:
    """Memory that decoding takes: Pillow's pixels, the array's, and the decoder's."""
    size, bands = _MODE_BYTES.get(image.mode, 4) + 3, len(image.getbands())
    if image.format == "JPEG2000":
        size += _JPEG2000_BYTES * bands
    elif image.format == "WEBP":
        size += _WEBP_BYTES
    elif "progressive" in image.info:
        size += _PROGRESSIVE_BYTES * bands
    return size


def _check_scans(path: str) -> None:
    """Refuse a progressive JPEG file whose scans would be decoded for hours."""
    with open(path, "rb") as file:
        # Within a scan the mark does not occur.
        scans = sum(block.count(_SCAN) for block in iter(lambda: file.read(2**20), b""))
    if scans > _MAX_SCANS:
        raise DataError(f"{path} has {scans} scans: expected {_MAX_SCANS} or fewer")


def read_image(path: str | os.PathLike[str], format: str) -> np.ndarray:
    """Read an image as it is to be seen: turned as its EXIF orientation says, in 8 bits a channel.

    Grey values of 16 bits are divided by 257; transparency is left out. ``format`` is one that
    Detectron2's ``read_image`` accepts. Returns (H, W, C); uint8 for RGB, BGR and L (C = 1).

    Raises:
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
    if upright.mode.startswith(("I", "F")) and not upright.mode.startswith("I;16"):
        # Integers of 32 bits or floats have no known range.
        raise DataError(
            f"{path}: its pixels have mode {upright.mode}: expected values of 8 or 16 bits"
        )
    return _by_strips(upright, partial(_convert, format=format))


def _convert(image: Image.Image, format: str) -> np.ndarray:
    if image.mode.startswith("I;16"):
        # 65535 is 255 · 257; 128 rounds.
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return convert_PIL_to_numpy(image, format)


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """``convert`` of an image, whose rows are converted independently of each other."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    if height <= rows:
        return convert(image)
    pixels: np.ndarray | None = None
    for top in range(0, height, rows):
        strip = convert(image.crop((0, top, width, min(top + rows, height))))
        if pixels is None:
            pixels = np.empty((height, *strip.shape[1:]), strip.dtype)
        pixels[top : top + rows] = strip
    assert pixels is not None  # height is above rows
    return pixels


def exif_orientation(image: Image.Image) -> int:
    """1 for an upright image, 2 to 8 for one that is turned or mirrored when it is read."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def stored_size(path: str | os.PathLike[str]) -> Size:
    """(height, width) of an image as it is read, from the head of its file."""
    with open_image(path) as image:
        # Orientations 5 to 8 exchange height and width.
        turned = exif_orientation(image) >= 5
        return image.size if turned else image.size[::-1]


def read_label_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The labels (H, W) of an image of 8 or 16 bits: uint8, uint16 or int32, as the file has it.

    One bit is 0 and 1. Grey in three equal channels is taken as one; transparency is left out.

    Raises:
        DataError: the image cannot be read, or its channels differ.
    """
    with open_image(path) as image:
        if image.mode in GREY_MODES:
            return _by_strips(image, partial(_only_channel, path=path))
        if image.mode not in _MODES:
            raise DataError(
                f"{path}: labels are an image with one channel, modes {', '.join(_MODES)}; "
                f"this image has mode {image.mode}"
            )
        return _by_strips(image, np.asarray)


def _only_channel(image: Image.Image, path: str | os.PathLike[str]) -> np.ndarray:
    """The values (H, W) uint8 of a strip of one of ``GREY_MODES``."""
    pixels = np.asarray(image).astype(np.uint8)
    if pixels.ndim == 2:
        return pixels
    # Colours without the alpha channel.
    values = pixels[..., : max(1, pixels.shape[-1] // 3 * 3)]
    if (values != values[..., :1]).any():
        raise DataError(
            f"{path}: labels are an image with one channel, or with equal ones; this image has "
            f"mode {image.mode} and colours: the key COLORS of DATASETS.OWN names them"
        )
    return values[..., 0]


def read_palette(path: str | os.PathLike[str]) -> list[list[int]]:
    """The RGB colours of the labels 0, 1, … of a palette image; empty without a palette."""
    with open_image(path) as image:
        colors = (image.getpalette("RGB") or []) if image.mode == "P" else []
    return [colors[i : i + 3] for i in range(0, len(colors), 3)]


def image_mode(path: str | os.PathLike[str]) -> str:
    """Pillow's mode of an image: ``RGB``, ``P``, ``1``, …"""
    with open_image(path) as image:
        return image.mode


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
        return _by_strips(image, _segment_ids)


def _segment_ids(image: Image.Image) -> np.ndarray:
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
