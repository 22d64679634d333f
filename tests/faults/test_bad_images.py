"""Image files: those that can be read are read right, and the others named."""

import base64
import io
import os
import struct
import subprocess
import sys
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from proscale.data import build_mapper
from proscale.data.formats import image_file
from proscale.data.formats.image_file import (
    DEFAULT_IMAGE_BYTES,
    read_image,
    read_label_image,
    read_panoptic_png,
)
from proscale.data.mappers.mapper import ResizeScale
from proscale.errors import ConfigError, DataError

EVERYWHERE = ("train", "evaluate", "check")


def save(files, array, format="PNG", **options):
    """Under the old name, whatever the format."""
    Image.fromarray(array).save(files.image, format=format, **options)


def png(path, width, height, *chunks):
    """A PNG file that says little and claims much."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def many_scans(number):
    """A progressive JPEG file whose last scan is there this many times more."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    start, end = content.rindex(b"\xff\xda"), len(content) - 2
    return content[:end] + content[start:end] * number + content[end:]


LIMIT = f"{DEFAULT_IMAGE_BYTES}, the value of PROSCALE_MAX_IMAGE_BYTES"
BOMB = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**25)))

# Where its pixels begin is a fraction; found by tests/fuzz/fuzz_panoptic.py.
FRACTION = (
    "SUkqAAgAAAAKAAABBAABAAAABAAAAAEBBAABAAAABAAAAAIBAwADAAAAhgAAAAMBAwABAAAAAQAAAAYBAwABAAAA"
    "AgAAABEBBQABAAAAjAAAABUBAwABAAAAAwAAABZBBAABAAQAAAAAABcBBAABAAAAMAAAABwBAwABAAAAAAAAASsA"
    "AAAIAAgACAAHAAAHAAAAAAAAAAAHAAAHAAAAAAAAAAAHAAAHAAAAAAAAAAAHAAAHAAAAAAAAAAA="
)

POSTSCRIPT = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"

# What is done to an image, where it is met, and what is told.
FAULTS = {
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
        lambda f: f.image.write_text(POSTSCRIPT),
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
        lambda f: save(f, np.zeros((64, 64), np.float32), "TIFF"),
        EVERYWHERE,
        ("000001.jpg", "mode F: expected values of 8 or 16 bits"),
    ),
    "integers of 32 bits": (
        lambda f: save(f, np.zeros((64, 64), np.int32), "TIFF"),
        EVERYWHERE,
        ("000001.jpg", "mode I: expected values of 8 or 16 bits"),
    ),
    "claims 60000x60000 pixels": (
        lambda f: png(f.image, 60000, 60000),
        EVERYWHERE,
        ("000001.jpg", "3600000000 pixels", "PROSCALE_MAX_IMAGE_BYTES"),
    ),
    "claims 16384x16384 pixels": (
        lambda f: png(f.image, 2**14, 2**14),
        EVERYWHERE,
        ("000001.jpg", "(16384, 16384), 1879048192 bytes", f"expected 1 to {LIMIT}"),
    ),
    "mask that claims 16384x16384 pixels": (
        lambda f: png(f.panoptic, 2**14, 2**14),
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
        lambda f: png(f.image, 64, 64, BOMB),
        EVERYWHERE,
        ("000001.jpg: not a readable image", "Decompressed data too large"),
    ),
    "of another size": (
        lambda f: save(f, np.zeros((50, 60, 3), np.uint8)),
        ("train", "evaluate"),
        ("000001.jpg", "(50, 60)", "expected (64, 64), as its annotation states"),
    ),
    "of another size, checked": (
        lambda f: save(f, np.zeros((50, 60, 3), np.uint8)),
        ("check",),
        ("image-size", "(50, 60)", "expected (64, 64), as its annotation states"),
    ),
    "1x1": (
        lambda f: save(f, np.zeros((1, 1, 3), np.uint8)),
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
        lambda f: png(f.panoptic, 60000, 60000),
        EVERYWHERE,
        ("000001.png is too large to be decoded", "3600000000 pixels", "PROSCALE_MAX_IMAGE_BYTES"),
    ),
}

CASES = [
    pytest.param(spoil, place, words, id=f"{name}, {place}")
    for name, (spoil, met, words) in FAULTS.items()
    for place in met
]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("spoil", "place", "words"), CASES)
def test_fault_is_named(files, places, tell, spoil, place, words):
    spoil(files)
    told = tell(lambda: places[place]("panoptic"))
    assert all(word in told for word in words), told


LABEL_FAULTS = {
    "colours": (
        lambda f: Image.new("RGB", (64, 64)).save(f.labels),
        ("labels are an image with one channel", "mode RGB"),
    ),
    "of another size": (lambda f: Image.new("L", (8, 8)).save(f.labels), ("(8, 8)", "(64, 64)")),
    "a label too high": (lambda f: Image.new("L", (64, 64), 9).save(f.labels), ("9", "0 to 8")),
}


@pytest.mark.parametrize("place", EVERYWHERE)
@pytest.mark.parametrize("fault", LABEL_FAULTS)
def test_fault_of_label_image_is_named(files, places, tell, fault, place):
    spoil, words = LABEL_FAULTS[fault]
    spoil(files)
    told = tell(lambda: places[place]("semantic"))
    assert all(word in told for word in ("000001", *words)), told


RGB = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = RGB[:, :, 0]


def exif(orientation):
    tags = Image.Exif()
    tags[274] = orientation
    return tags


def palette():
    image = Image.fromarray(GREY % 4)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    return image


# An image, the format to save it in, and the pixels that it shows.
READABLE = {
    "PNG named .jpg": (Image.fromarray(RGB), {"format": "PNG"}, RGB),
    "greyscale": (Image.fromarray(GREY), {"format": "PNG"}, GREY[:, :, None]),
    "palette": (
        palette(),
        {"format": "PNG"},
        np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])[GREY % 4],
    ),
    "palette with transparency": (
        palette(),
        {"format": "PNG", "transparency": 0},
        np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])[GREY % 4],
    ),
    "alpha": (
        Image.fromarray(np.dstack([RGB, GREY])),
        {"format": "PNG"},
        RGB,
    ),
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
        {"format": "PNG", "exif": exif(6)},
        RGB,
    ),
    "mirrored by EXIF": (
        Image.fromarray(RGB[:, ::-1].copy()),
        {"format": "PNG", "exif": exif(2)},
        RGB,
    ),
    "1x1": (Image.fromarray(RGB[:1, :1]), {"format": "PNG"}, RGB[:1, :1]),
    "1x5000": (Image.new("RGB", (5000, 1), "red"), {"format": "PNG"}, [[[255, 0, 0]] * 5000]),
    "5000x1": (Image.new("RGB", (1, 5000), "red"), {"format": "PNG"}, [[[255, 0, 0]]] * 5000),
}


@pytest.mark.parametrize("name", READABLE)
def test_readable_image_is_read_right(name, tmp_path):
    image, options, pixels = READABLE[name]
    image.save(tmp_path / "image.jpg", **options)
    read = read_image(tmp_path / "image.jpg", "RGB")
    assert read.dtype == np.uint8
    assert (read == np.broadcast_to(pixels, (*np.shape(pixels)[:2], 3))).all()
    assert (read_image(tmp_path / "image.jpg", "BGR") == read[:, :, ::-1]).all()


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (1, 1)], ids=str)
@pytest.mark.parametrize("mapper", ["mask_former_semantic", "evaluation"])
def test_narrow_images_become_samples(cfg, tmp_path, size, mapper):
    image, labels = tmp_path / "image.png", tmp_path / "labels.png"
    Image.new("RGB", size, "red").save(image)
    Image.new("L", size, 3).save(labels)
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    entry = {"file_name": str(image), "sem_seg_file_name": str(labels)}
    sample = build_mapper(cfg, is_train=mapper != "evaluation")(entry)
    assert min(sample["image"].shape) >= 1
    assert (sample["width"], sample["height"]) == size


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (1, 1)], ids=str)
def test_narrow_images_survive_large_scale_jitter(cfg, size):
    image = np.zeros((*size, 3), np.uint8)
    resized = ResizeScale(0.1, 0.1, 64, 64).get_transform(image).apply_image(image)
    assert min(resized.shape[:2]) >= 1


# Kind of image, the file's format, and the bytes that a pixel takes when it is decoded.
BUDGETS = [
    ("RGB", "PNG", {}, 7),
    ("RGB", "JPEG", {}, 7),
    ("RGB", "JPEG", {"progressive": True}, 13),
    ("RGB", "TIFF", {}, 7),
    ("RGB", "WEBP", {}, 19),
    ("RGB", "JPEG2000", {}, 22),
    ("RGBA", "PNG", {}, 7),
    ("L", "PNG", {}, 4),
    ("P", "GIF", {}, 4),
    ("I;16", "PNG", {}, 5),
    ("CMYK", "TIFF", {}, 7),
]


@pytest.mark.parametrize(("mode", "format", "options", "size"), BUDGETS)
def test_all_formats_have_one_budget(tmp_path, monkeypatch, mode, format, options, size):
    path = tmp_path / "image"
    Image.new(mode, (40, 20)).save(path, format, **options)
    monkeypatch.setenv("PROSCALE_MAX_IMAGE_BYTES", str(800 * size))
    assert read_image(path, "RGB").shape == (20, 40, 3)
    monkeypatch.setenv("PROSCALE_MAX_IMAGE_BYTES", str(800 * size - 1))
    with pytest.raises(DataError, match=rf"has \(height, width\) \(20, 40\), {800 * size} bytes"):
        read_image(path, "RGB")


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "9" * 5000, "1 GiB"])
def test_budget_is_a_number(tmp_path, monkeypatch, text):
    Image.new("L", (2, 2)).save(tmp_path / "image.png")
    monkeypatch.setenv("PROSCALE_MAX_IMAGE_BYTES", text)
    with pytest.raises(ConfigError, match=r"BYTES is .*: expected a number"):
        read_image(tmp_path / "image.png", "L")


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("format", ["RGB", "BGR", "L"])
def test_large_images_are_converted_by_strips(tmp_path, monkeypatch, name, format):
    path = tmp_path / "image.jpg"
    image, options, _ = READABLE[name]
    image.save(path, **options)
    readers = {
        "image": lambda: read_image(path, format),
        "labels": lambda: read_label_image(path),
        "ids": lambda: read_panoptic_png(path),
    }
    whole = {}
    for reader, read in readers.items():
        with suppress(DataError):
            whole[reader] = read()
    monkeypatch.setattr(image_file, "_STRIP_PIXELS", 15)
    for reader, pixels in whole.items():
        strips = readers[reader]()
        assert strips.dtype == pixels.dtype
        assert np.array_equal(strips, pixels)


@pytest.mark.slow
def test_decoding_takes_what_the_budget_says(tmp_path):
    Image.new("RGB", (9000, 9000), "red").save(tmp_path / "image.png")
    code = (
        "import resource, sys; from proscale.data.formats.image_file import read_image; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024; "
        "before = peak(); read_image(sys.argv[1], 'RGB'); print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "image.png")]
    taken = int(subprocess.run(command, check=True, capture_output=True).stdout)
    assert taken <= 1.1 * 7 * 9000**2
