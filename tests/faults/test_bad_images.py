"""Image files: those that can be read are read right, and the others named."""

import base64
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from proscale.data import build_mapper
from proscale.data.formats.image_file import MAX_PIXELS, read_image
from proscale.data.mappers.mapper import ResizeScale

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
        ("000001.jpg: not a readable image", "directory"),
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
        ("000001.jpg", "3600000000 pixels"),
    ),
    "claims a few pixels too many": (
        lambda f: png(f.image, 2**14, 2**14 + 1),
        EVERYWHERE,
        ("000001.jpg", "(16385, 16384)", f"1 to {MAX_PIXELS} pixels", "PIL.Image.MAX_IMAGE_PIXELS"),
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
        ("000001.png: not a readable image", "3600000000 pixels"),
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


def test_limit_of_pixels_is_pillows(tmp_path, monkeypatch):
    Image.new("L", (20, 20)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(tmp_path / "image.png", "L").shape == (20, 20, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with pytest.raises(ValueError, match=r"image\.png has .* expected 1 to 399 pixels"):
        read_image(tmp_path / "image.png", "L")
