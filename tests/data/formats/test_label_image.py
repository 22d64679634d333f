"""Label images: values, whatever they look like, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from proscale.data.formats.label_image import read_label_image, read_palette, relabel


@pytest.fixture
def path(tmp_path):
    return tmp_path / "labels.png"


def test_palette_images_have_labels_not_brightnesses(path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255, 9, 8, 7])
    image.putdata([0, 1, 2])
    image.save(path)
    assert read_label_image(path).tolist() == [[0, 1, 2]]
    assert read_palette(path)[:3] == [[0, 0, 0], [255, 255, 255], [9, 8, 7]]


def test_sixteen_bits(path):
    Image.fromarray(np.array([[0, 1000]], np.uint16)).save(path)
    assert read_label_image(path).tolist() == [[0, 1000]]
    assert read_palette(path) == []


def test_colours_are_refused(path):
    Image.new("RGB", (2, 2)).save(path)
    with pytest.raises(ValueError, match=r"labels\.png: labels are an image with one channel.*RGB"):
        read_label_image(path)


@pytest.mark.parametrize("read", [read_label_image, read_palette])
def test_what_is_no_image_is_named(path, read):
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"labels\.png: not a readable image"):
        read(path)


def test_damaged_image_is_named(path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 99, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"labels\.png: not a readable image"):
        read_label_image(path)


def test_missing_file(path):
    with pytest.raises(FileNotFoundError):
        read_label_image(path)


def test_every_id_is_replaced():
    ids = np.array([[0, 9], [70000, 9]], np.uint32)
    result = relabel(ids, {70000: 2, 0: 255, 9: 1, 8: 7}, np.uint8)
    assert result.dtype == np.uint8
    assert result.tolist() == [[255, 1], [2, 1]]


@pytest.mark.parametrize("ids", [[1, 5], [0, 5], [2, 5]])
def test_unknown_ids_are_listed(ids):
    with pytest.raises(ValueError, match=r"ids \[5\]: expected \[0, 1, 2\]"):
        relabel(np.array(ids), {0: 0, 1: 0, 2: 0}, np.uint8)
