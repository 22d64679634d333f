"""Limits of images: one budget in bytes for all formats, and sides of a pixel."""

import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from proscale.data import build_mapper
from proscale.data.formats import image_file
from proscale.data.formats.image_file import read_image, read_label_image, read_panoptic_png
from proscale.data.mappers.mapper import ResizeScale
from proscale.errors import ConfigError, DataError
from tests.hostile.images import READABLE


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
