"""Images and videos: damaged, of absurd size, of other kinds, or names of something else."""

import base64
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from proscale.data.formats.image_file import (
    DEFAULT_IMAGE_BYTES,
    read_image,
    read_label_image,
    read_panoptic_png,
)
from tests.hostile.cases import Case, OwnData, Place, command
from tests.hostile.coco import EVERYWHERE, meet

SIDE = 2**14


def _save(array: np.ndarray, format: str = "PNG", **options: Any) -> Callable[[Path], None]:
    """The array as an image, whatever the name of the file."""
    return lambda path: Image.fromarray(array).save(path, format=format, **options)


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, *chunks: tuple[bytes, bytes], color: int = 2, depth: int = 8,
    pixels: bytes = bytes(99),
) -> bytes:  # fmt: skip
    """A PNG file that says little and claims much."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _zeros_png(width: int, height: int, channels: int, color: int) -> Callable[[Path], object]:
    """A complete PNG file of zeros, compressed in pieces."""

    def write(path: Path) -> None:
        packer = zlib.compressobj(1)
        row = bytes(1 + width * channels)
        data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
        header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
        parts = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))

    return write


def _patched(format: str, old: bytes, new: bytes, size: int = 64, **options: Any) -> Callable:
    """A sound image of ``size`` squared with bytes of its header replaced."""

    def write(path: Path) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (size, size), "red").save(buffer, format, **options)
        content = buffer.getvalue()
        assert old in content, format
        path.write_bytes(content.replace(old, new, 1))

    return write


def _tiff(*tags: tuple[int, int, int, int], data: bytes = b"", next_: int = 0) -> bytes:
    """A TIFF file of tags (number, type, count, value)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_)
    return b"II*\0\x08\0\0\0" + directory + data


def _tiff_of(width: int, height: int, *more: tuple[int, int, int, int], next_: int = 0) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: height}
    replaced = {tag[0] for tag in more}
    kept = [(tag, 4, 1, value) for tag, value in tags.items() if tag not in replaced]
    return _tiff(*kept, *more, data=bytes(400), next_=next_)


def many_scans(number):
    """A progressive JPEG file whose last scan is there this many times more."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    start, end = content.rindex(b"\xff\xda"), len(content) - 2
    return content[:end] + content[start:end] * number + content[end:]


LIMIT = f"{DEFAULT_IMAGE_BYTES}, the value of PROSCALE_MAX_IMAGE_BYTES"
SWELLING = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**25)))

# Where its pixels begin is a fraction; found by fuzzing.
FRACTION = (
    "SUkqAAgAAAAKAAABBAABAAAAABAAAAEBBAABAAAABAAAAAIBAwADAAAAhgAAAAMBAwABAAAAAQAAAAYBAwABAAAA"
    "AgAAABEBBQABAAAAjAAAABUBAwABAAAAAwAAABZBBAABAAQAAAAAABcBBAABAAAAMAAAABwBAwABAAAAAAAAASsA"
    "AAAIAAgACAAHAAAHAAAAAAAAAAAHAAAHAAAAAAAAAAAHAAAHAAAAAAAAAAAHAAAHAAAAAAAAAAA="
)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
_SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    b'<image xlink:href="http://127.0.0.1:9/a.png"/></svg>'
)
_HTML = b"<!DOCTYPE html><html>404</html>"
_PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>"

# Files in place of an image, and words that are told beside its name.
_FILES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "empty": (_bytes(b""), ("none of BMP",)),
    "text": (_bytes(b"no image"), ("none of BMP",)),
    "a web page": (_bytes(_HTML), ("none of BMP",)),
    "SVG": (_bytes(_SVG), ("none of BMP",)),
    "PDF": (_bytes(_PDF), ("none of BMP",)),
    "PostScript, which Ghostscript would run": (_bytes(POSTSCRIPT), ("none of BMP",)),
    "a picture of a video format": (_bytes(b"RIFF\x10\0\0\0AVI LIST"), ("none of BMP",)),
    "FITS, FLI, PSD, ICNS": (_bytes(b"8BPS\0\1" + bytes(99)), ("none of BMP",)),
    "a TIFF file with a fraction as offset": (_bytes(base64.b64decode(FRACTION)), ("IFDRational",)),
    "floats": (_save(np.zeros((64, 64), np.float32), "TIFF"), ("mode F",)),
    "integers of 32 bits": (_save(np.zeros((64, 64), np.int32), "TIFF"), ("mode I",)),
    "claims 60000x60000 pixels": (_bytes(png(60000, 60000)), ()),
    "claims 2**31 pixels a side": (_bytes(png(2**31 - 1, 2**31 - 1)), ()),
    "claims no pixels": (_bytes(png(0, 0)), ()),
    "claims a few pixels too many": (_bytes(png(SIDE, SIDE + 1)), ("PROSCALE_MAX_IMAGE_BYTES",)),
    "claims 64 bits a pixel": (_bytes(png(12000, 12000, color=6, depth=16)), ()),
    "a text chunk that swells": (_bytes(png(64, 64, SWELLING)), ("Decompressed data too large",)),
    "a colour profile that swells": (
        _bytes(png(64, 64, (b"iCCP", b"p\0\0" + zlib.compress(bytes(2**26))))),
        (),
    ),
    "a chunk of 2**31 bytes": (
        _bytes(png(64, 64).replace(b"IDAT", b"IDAT", 1)[:33] + b"\x7f\xff\xff\xffIDAT"),
        (),
    ),
    "a palette that is too short": (
        _bytes(png(64, 64, (b"PLTE", b"abc"), color=3, pixels=b"\x09" * 65 * 64)[:-20]),
        (),
    ),
    "a wrong checksum": (
        lambda path: (_save(np.zeros((64, 64, 3), np.uint8))(path), _flip(path, 40)),
        (),
    ),
    "JPEG that claims 65500x65500": (
        _patched("JPEG", b"\0\x40\0\x40\x03", b"\xff\xdc\xff\xdc\x03"),
        (),
    ),
    "JPEG without pixels": (_patched("JPEG", b"\0\x40\0\x40\x03", b"\0\0\0\0\x03"), ()),
    "GIF that claims 65535x65535": (
        _patched("GIF", b"\x40\0\x40\0", b"\xff\xff\xff\xff"),
        (),
    ),
    "BMP that claims 2**30 rows": (
        _patched("BMP", struct.pack("<ii", 64, 64), struct.pack("<ii", 64, 2**30)),
        (),
    ),
    "BMP of negative width": (
        _patched("BMP", struct.pack("<ii", 64, 64), struct.pack("<ii", -64, 64)),
        (),
    ),
    "PPM that claims 10**9 rows": (_bytes(b"P6 64 1000000000 255\n" + bytes(99)), ()),
    "PPM of 5000 digits": (_bytes(b"P6 " + b"9" * 5000 + b" 64 255\n"), ()),
    "PPM of words": (_bytes(b"P6 many 64 255\n"), ()),
    "TIFF that claims 2**31 rows": (_bytes(_tiff_of(64, 2**31)), ()),
    "TIFF without a size": (_bytes(_tiff((258, 4, 1, 8))), ()),
    "TIFF of directories in a circle": (_bytes(_tiff_of(64, 64, next_=8)), ()),
    "TIFF of 2**32 bits a sample": (_bytes(_tiff_of(64, 64, (258, 4, 1, 2**32 - 1))), ()),
    "TIFF of 2**32 samples": (_bytes(_tiff_of(64, 64, (277, 4, 1, 2**32 - 1))), ()),
    "TIFF with pixels beyond its end": (_bytes(_tiff_of(64, 64, (273, 4, 1, 2**31))), ()),
    "TIFF with a tag of 2**32 values": (_bytes(_tiff_of(64, 64, (700, 4, 2**32 - 1, 8))), ()),
    "WebP cut short": (_patched("WEBP", b"WEBPVP8", b"WEBPVP9"), ()),
    "JPEG 2000 cut short": (_bytes(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40)), ()),
}
for _format in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000"):
    _FILES[f"{_format} cut short"] = (
        lambda path, format=_format: _cut(path, format),
        (),
    )


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def _cut(path: Path, format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format)
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def _jpeg2000(path: Path) -> None:
    """A small image whose header claims 16384x16384 pixels in one tile."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG2000", no_jp2=True)
    content = buffer.getvalue()
    size, tile = struct.pack(">II", 64, 64), struct.pack(">II", SIDE, SIDE)
    path.write_bytes(content.replace(size, tile))


# Sound in form, but of a size that fills the memory.
_BOMBS: dict[str, Callable[[Path], object]] = {
    "PNG of 16384x16384": _zeros_png(SIDE, SIDE, 3, 2),
    "PNG of 16384x16384 with alpha": _zeros_png(SIDE, SIDE, 4, 6),
    "grey PNG of 40000x40000": _zeros_png(40000, 40000, 1, 0),
    "JPEG of 16384x16384": lambda path: Image.new("RGB", (SIDE, SIDE)).save(path, "JPEG"),
    "TIFF of 16384x16384": lambda path: Image.new("RGB", (SIDE, SIDE)).save(
        path, "TIFF", compression="tiff_adobe_deflate"
    ),
    "WebP of 16383x16383": lambda path: path.write_bytes(_webp(16383, 16383)),
    "JPEG 2000 of 16384x16384": _jpeg2000,
}


def make_bombs(folder: Path) -> None:
    """Write the images of absurd size, which take seconds to make, once for all cases."""
    folder.mkdir()
    for name, write in _BOMBS.items():
        write(folder / name)


def _bomb(name: str) -> Callable[[Place], Path]:
    """A link to the image in the case's folder."""

    def write(place: Place) -> Path:
        path = place / "hostile.jpg"
        path.symlink_to(place.material / "bombs" / name)
        return path

    return write


def _webp(width: int, height: int) -> bytes:
    """The header of a lossy WebP of that size, without pixels."""
    frame = b"\x30\x01\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(2000)
    body = b"WEBPVP8 " + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _read(name: str, write: Callable[[Path], object], words: tuple[str, ...]) -> Case:
    def run(place: Place) -> object:
        write(place / "image.jpg")
        return read_image(place / "image.jpg", "RGB")

    return Case(f"read: {name}", run, ("image.jpg", *words))


def _predict(*inputs: str, write: Callable[[Place], object], options: tuple[str, ...] = ()) -> Any:
    """A run of ``proscale predict`` with the small model."""

    def run(place: Place) -> object:
        for name in ("own", "small.yaml", "weights.pth", "image.png"):
            place.copy(name)
        write(place)
        return command(
            *("predict", "--config-file", "small.yaml", "--weights", "weights.pth"),
            *("--output", "out", *options, *inputs),
        )(place)

    return run


def _image(write: Callable[[Path], object]) -> Callable[[Place], object]:
    return lambda place: write(place / "hostile.jpg")


def _others_are_predicted(place: Place, value: object) -> bool:
    return (place / "out" / "overlays" / "image.jpg").is_file()


def _predicted(name: str, write: Callable[[Path], object], words: tuple[str, ...] = ()) -> Case:
    """A bad image is told, and the exit status is 1."""
    run = _predict("hostile.jpg", "image.png", write=_image(write))
    return Case(f"predict: {name}", run, ("hostile.jpg", *words), is_light=False)


def _save_image(f: OwnData, array: np.ndarray, format: str = "PNG") -> None:
    """Under the old name, whatever the format."""
    Image.fromarray(array).save(f.image, format=format)


# What is done to an image or mask of the own data, where it is met, and words that are told.
_SPOILT: dict[str, tuple[Callable[[OwnData], object], tuple[str, ...], tuple[str, ...]]] = {
    "truncated": (
        lambda f: f.image.write_bytes(f.image.read_bytes()[:-400]),
        EVERYWHERE,
        ("000001.jpg: not a readable image", "truncated"),
    ),
    "zero bytes": (
        lambda f: f.image.write_bytes(b""),
        EVERYWHERE,
        ("000001.jpg: not a readable image", "none of BMP, GIF, JPEG"),
    ),
    "text": (
        lambda f: f.image.write_text("no image"),
        EVERYWHERE,
        ("000001.jpg: not a readable image", "none of BMP, GIF, JPEG"),
    ),
    "PostScript, which Ghostscript would run": (
        lambda f: f.image.write_bytes(POSTSCRIPT),
        EVERYWHERE,
        ("000001.jpg: not a readable image", "none of BMP, GIF, JPEG"),
    ),
    "missing": (lambda f: f.image.unlink(), EVERYWHERE, ("000001.jpg",)),
    "a folder": (
        lambda f: (f.image.unlink(), f.image.mkdir()),
        EVERYWHERE,
        ("000001.jpg: it is a folder: expected a file",),
    ),
    "a TIFF file with a fraction as offset": (
        lambda f: f.image.write_bytes(base64.b64decode(FRACTION)),
        EVERYWHERE,
        ("000001.jpg: not a readable image", "IFDRational"),
    ),
    "floats": (
        lambda f: _save_image(f, np.zeros((64, 64), np.float32), "TIFF"),
        EVERYWHERE,
        ("000001.jpg", "mode F: expected values of 8 or 16 bits"),
    ),
    "integers of 32 bits": (
        lambda f: _save_image(f, np.zeros((64, 64), np.int32), "TIFF"),
        EVERYWHERE,
        ("000001.jpg", "mode I: expected values of 8 or 16 bits"),
    ),
    "claims 60000x60000 pixels": (
        lambda f: f.image.write_bytes(png(60000, 60000)),
        EVERYWHERE,
        ("000001.jpg", "3600000000 pixels", "PROSCALE_MAX_IMAGE_BYTES"),
    ),
    "claims 16384x16384 pixels": (
        lambda f: f.image.write_bytes(png(2**14, 2**14)),
        EVERYWHERE,
        ("000001.jpg", "(16384, 16384), 1879048192 bytes", f"expected 1 to {LIMIT}"),
    ),
    "mask that claims 16384x16384 pixels": (
        lambda f: f.panoptic.write_bytes(png(2**14, 2**14)),
        EVERYWHERE,
        ("000001.png", "(16384, 16384), 1879048192 bytes", f"expected 1 to {LIMIT}"),
    ),
    "JPEG of 200 scans": (
        lambda f: f.image.write_bytes(many_scans(200)),
        EVERYWHERE,
        ("000001.jpg has 210 scans: expected 100 or fewer",),
    ),
    "a pipe": (
        lambda f: (f.image.unlink(), os.mkfifo(f.image)),
        EVERYWHERE,
        ("000001.jpg: it is a pipe or device: expected a file",),
    ),
    "a text chunk that swells": (
        lambda f: f.image.write_bytes(png(64, 64, SWELLING)),
        EVERYWHERE,
        ("000001.jpg: not a readable image", "Decompressed data too large"),
    ),
    "of another size": (
        lambda f: _save_image(f, np.zeros((50, 60, 3), np.uint8)),
        ("train", "evaluate"),
        ("000001.jpg", "(50, 60)", "expected (64, 64), as its annotation states"),
    ),
    "of another size, checked": (
        lambda f: _save_image(f, np.zeros((50, 60, 3), np.uint8)),
        ("check",),
        ("image-size", "(50, 60)", "expected (64, 64), as its annotation states"),
    ),
    "1x1": (
        lambda f: _save_image(f, np.zeros((1, 1, 3), np.uint8)),
        ("train", "evaluate"),
        ("000001.jpg", "(1, 1)", "expected (64, 64), as its annotation states"),
    ),
    "mask of another size": (
        lambda f: Image.open(f.panoptic).resize((32, 32), 0).save(f.panoptic),
        EVERYWHERE,
        ("000001.png", "(32, 32)", "(64, 64)"),
    ),
    "mask truncated": (
        lambda f: f.panoptic.write_bytes(f.panoptic.read_bytes()[:-100]),
        EVERYWHERE,
        ("000001.png: not a readable image",),
    ),
    "mask with an alpha channel": (
        lambda f: Image.open(f.panoptic).convert("RGBA").save(f.panoptic),
        EVERYWHERE,
        ("000001.png: a panoptic PNG has mode RGB, this image RGBA",),
    ),
    "mask missing": (lambda f: f.panoptic.unlink(), EVERYWHERE, ("000001.png",)),
    "mask that claims 60000x60000 pixels": (
        lambda f: f.panoptic.write_bytes(png(60000, 60000)),
        EVERYWHERE,
        ("000001.png is too large to be decoded", "3600000000 pixels", "PROSCALE_MAX_IMAGE_BYTES"),
    ),
    "a device": (
        lambda f: (f.image.unlink(), f.image.symlink_to("/dev/zero")),
        EVERYWHERE,
        ("000001.jpg",),
    ),
    "a link to itself": (
        lambda f: (f.image.unlink(), f.image.symlink_to(f.image)),
        EVERYWHERE,
        ("000001.jpg",),
    ),
    "mask with a palette": (
        lambda f: Image.open(f.panoptic).convert("P").save(f.panoptic),
        EVERYWHERE,
        ("000001.png", "mode"),
    ),
    "mask saved as JPEG": (
        lambda f: Image.open(f.panoptic).convert("RGB").save(f.panoptic, "JPEG"),
        EVERYWHERE,
        ("000001.png",),
    ),
    "mask that is a pipe": (
        lambda f: (f.panoptic.unlink(), os.mkfifo(f.panoptic)),
        EVERYWHERE,
        ("000001.png",),
    ),
}


def _own(name: str, spoil: Callable[[OwnData], object], words: tuple[str, ...], where: str) -> Case:
    def run(place: Place) -> object:
        spoil(place.own)
        return meet(place, "panoptic", where)

    return Case(f"own data: {name}, {where}", run, words)


RGB = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = RGB[:, :, 0]
_COLORS = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])


def _exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def _palette() -> Image.Image:
    image = Image.fromarray(GREY % 4)
    image.putpalette(_COLORS.flatten().tolist())
    return image


# An image, the format to save it in, and the pixels that it shows.
READABLE: dict[str, tuple[Image.Image, dict[str, Any], Any]] = {
    "PNG named .jpg": (Image.fromarray(RGB), {"format": "PNG"}, RGB),
    "greyscale": (Image.fromarray(GREY), {"format": "PNG"}, GREY[:, :, None]),
    "palette": (_palette(), {"format": "PNG"}, _COLORS[GREY % 4]),
    "palette with transparency": (
        _palette(),
        {"format": "PNG", "transparency": 0},
        _COLORS[GREY % 4],
    ),
    "alpha": (Image.fromarray(np.dstack([RGB, GREY])), {"format": "PNG"}, RGB),
    "16 bits": (
        Image.fromarray(GREY.astype(np.uint16) * 257),
        {"format": "PNG"},
        GREY[:, :, None],
    ),
    "black and white": (
        Image.fromarray(GREY > 99),
        {"format": "PNG"},
        (GREY > 99)[:, :, None] * 255,
    ),
    "CMYK": (
        Image.frombytes("CMYK", (7, 5), np.dstack([255 - RGB, 0 * GREY]).tobytes()),
        {"format": "TIFF"},
        RGB,
    ),
    "turned by EXIF": (
        Image.fromarray(np.rot90(RGB).copy()),
        {"format": "PNG", "exif": _exif(6)},
        RGB,
    ),
    "mirrored by EXIF": (
        Image.fromarray(RGB[:, ::-1].copy()),
        {"format": "PNG", "exif": _exif(2)},
        RGB,
    ),
    "turned by EXIF to nowhere": (
        Image.fromarray(RGB),
        {"format": "PNG", "exif": _exif(99)},
        RGB,
    ),
    "1x1": (Image.fromarray(RGB[:1, :1]), {"format": "PNG"}, RGB[:1, :1]),
    "1x5000": (Image.new("RGB", (5000, 1), "red"), {"format": "PNG"}, [[[255, 0, 0]] * 5000]),
    "5000x1": (Image.new("RGB", (1, 5000), "red"), {"format": "PNG"}, [[[255, 0, 0]]] * 5000),
}


def _readable(name: str, image: Image.Image, options: dict[str, Any], pixels: Any) -> Case:
    def run(place: Place) -> tuple[np.ndarray, np.ndarray]:
        path = place / "image.jpg"
        image.save(path, **options)
        return read_image(path, "RGB"), read_image(path, "BGR")

    def is_right(place: Place, read: tuple[np.ndarray, np.ndarray]) -> bool:
        rgb, bgr = read
        shown = np.broadcast_to(pixels, (*np.shape(pixels)[:2], 3))
        return (
            rgb.dtype == np.uint8 and np.array_equal(rgb, shown)
            and np.array_equal(bgr, rgb[:, :, ::-1])
        )  # fmt: skip

    return Case(f"sound: {name}", run, (), is_refused=False, is_right=is_right)


def _video(path: Path, frames: int = 4, size: int = 64) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (size, size))
    for value in range(frames):
        writer.write(np.full((size, size, 3), value * 9, np.uint8))
    writer.release()


def _spoilt_video(change: Callable[[bytes], bytes]) -> Callable[[Place], object]:
    def write(place: Place) -> None:
        _video(place / "hostile.mp4")
        path = place / "hostile.mp4"
        path.write_bytes(change(path.read_bytes()))

    return write


def _with_video(content: bytes) -> Callable[[Place], object]:
    return lambda place: place.write("hostile.mp4", content)


_PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"
_CONCAT = b"ffconcat version 1.0\nfile '/etc/passwd'\nfile 'http://127.0.0.1:9/a.mp4'\n"
_AVI = b"RIFF\xff\xff\xff\x7fAVI LIST\x44\0\0\0hdrlavih\x38\0\0\0" + struct.pack(
    "<14I", 1, 1, 0, 16, 2**31, 0, 1, 0, 2**31 - 1, 2**31 - 1, 0, 0, 0, 0
)

_VIDEOS: dict[str, Callable[[Place], object]] = {
    "empty": _with_video(b""),
    "text": _with_video(b"no video"),
    "a web page": _with_video(_HTML),
    "a playlist of the web": _with_video(_PLAYLIST),
    "a list of other files": _with_video(_CONCAT),
    "an AVI header of absurd size": _with_video(_AVI),
    "a picture": lambda place: Image.new("RGB", (64, 64)).save(place / "hostile.mp4", "TIFF"),
    "cut short": _spoilt_video(lambda data: data[: len(data) // 2]),
    "without an index": _spoilt_video(lambda data: data[:-200]),
    "of 65535x65535": _spoilt_video(
        lambda data: data.replace(struct.pack(">HH", 64, 64), struct.pack(">HH", 65535, 65535))
    ),
    "without frames": _spoilt_video(lambda data: data.replace(b"mdat", b"free")),
    "a pipe": lambda place: os.mkfifo(place / "hostile.mp4"),
    "a device": lambda place: (place / "hostile.mp4").symlink_to("/dev/zero"),
}


# FFmpeg makes what it can of these.
_TOLERATED = ("a picture", "of 65535x65535", "without frames", "without an index")


def _json_of(place: Place, value: object) -> bool:
    """The one image is predicted, and listed once."""
    content = json.loads((place / "out" / "predictions.json").read_text())
    return len(content["images"]) == 1 and _others_are_predicted(place, value)


CASES = [
    *(_read(name, *spec) for name, spec in _FILES.items()),
    *(
        _predicted(name, _FILES[name][0])
        for name in ("empty", "PNG cut short", "claims 60000x60000 pixels", "TIFF cut short")
    ),
    *(
        Case(
            f"predict: {name}",
            _predict("hostile.jpg", "image.png", write=_bomb(name)),
            ("hostile.jpg",),
            is_light=False,
        )
        for name in _BOMBS
    ),
    *(
        Case(
            f"{reader.__name__}: {name}",
            lambda place, name=name, reader=reader: reader(_bomb(name)(place)),
            ("hostile.jpg",),
            is_light=False,
        )
        for name, reader in (
            ("grey PNG of 40000x40000", read_label_image),
            ("JPEG 2000 of 16384x16384", read_label_image),
            ("PNG of 16384x16384 with alpha", read_panoptic_png),
        )
    ),
    *(
        _own(name, spoil, words, where)
        for name, (spoil, met, words) in _SPOILT.items()
        for where in met
    ),
    *(_readable(name, *spec) for name, spec in READABLE.items()),
    *(
        Case(
            f"video: {name}",
            _predict("hostile.mp4", "image.png", write=write),
            () if name in _TOLERATED else ("hostile.mp4",),
            None if name in _TOLERATED else True,
            is_light=False,
        )
        for name, write in _VIDEOS.items()
    ),
    *(
        Case(f"input: {name!r}", _predict(name, write=lambda place: None), (words,), is_light=False)
        for name, words in {
            "http://127.0.0.1:9/a.png": "http://127.0.0.1:9/a.png",
            "rtsp://127.0.0.1:9/a.mp4": "rtsp://127.0.0.1:9/a.mp4",
            "concat:/etc/passwd": "concat:/etc/passwd",
            "nowhere.png": "nowhere.png",
            "a\0b.png": "b.png",
            "~nosuchuser/a.png": "nosuchuser",
            "a" * 300 + ".png": "aaa",
            "[": "[",
            "*.nothing": "*.nothing",
            "": "INPUT",
            "/dev/zero": "/dev/zero",
        }.items()
    ),
    Case(
        "the same image twice",
        _predict("image.png", "./image.png", "image.*", write=lambda place: None),
        (),
        is_refused=False,
        is_right=_json_of,
        is_light=False,
    ),
]
