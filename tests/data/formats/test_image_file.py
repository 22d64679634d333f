"""Label images and panoptic PNG files: values, whatever they look like, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from proscale.data.formats.image_file import (
    MAX_ID,
    id_to_rgb,
    image_mode,
    read_label_image,
    read_palette,
    read_panoptic_png,
    relabel,
    rgb_to_id,
    write_panoptic_png,
)


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
    Image.new("RGB", (2, 2), (1, 2, 1)).save(path)
    with pytest.raises(
        ValueError, match=r"labels\.png: labels are an image with one .*RGB.* COLORS"
    ):
        read_label_image(path)


@pytest.mark.parametrize("mode", ["1", "LA", "RGB", "RGBA"])
def test_grey_labels_are_read_in_any_mode(path, mode):
    labels = np.array([[0, 255], [0, 0]] if mode == "1" else [[0, 7], [3, 255]], np.uint8)
    image = Image.fromarray(labels).convert(mode)
    if "A" in mode:
        image.putalpha(9)
    image.save(path)
    assert image_mode(path) == mode
    assert np.array_equal(read_label_image(path), labels > 0 if mode == "1" else labels)


def test_grey_labels_are_read_by_strips(path):
    Image.new("RGB", (2000, 1000), (7, 7, 7)).save(path)
    assert (read_label_image(path) == np.full((1000, 2000), 7)).all()


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


def test_code_is_r_plus_256_g_plus_65536_b():
    assert rgb_to_id(np.array([[[1, 2, 3]]], dtype=np.uint8)).tolist() == [
        [1 + 2 * 256 + 3 * 65536]
    ]
    assert id_to_rgb(np.array([[197121]])).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_round_trip_through_a_file(tmp_path, dtype):
    ids = np.random.RandomState(0).randint(0, MAX_ID + 1, size=(13, 17)).astype(dtype)
    ids[0, :2] = 0, MAX_ID
    write_panoptic_png(tmp_path / "a.png", ids)
    read = read_panoptic_png(tmp_path / "a.png")
    assert read.dtype == np.uint32
    assert (read == ids).all()


@pytest.mark.parametrize("ids", [np.array([[-1]]), np.array([[MAX_ID + 1]]), np.array([[1.0]])])
def test_ids_that_no_colour_can_hold(tmp_path, ids):
    with pytest.raises(ValueError, match=r"a\.png: segment ids must be"):
        write_panoptic_png(tmp_path / "a.png", ids)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    "rgb", [np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), int)]
)
def test_arrays_that_are_no_colours(rgb):
    with pytest.raises(ValueError, match="uint8"):
        rgb_to_id(rgb)


def test_read_errors_name_the_file(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match=r"grey\.png.*RGB.*L"):
        read_panoptic_png(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png"):
        read_panoptic_png(tmp_path / "text.png")
    write_panoptic_png(tmp_path / "cut.png", np.arange(64 * 64).reshape(64, 64) * 997)
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.png"):
        read_panoptic_png(tmp_path / "cut.png")
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_panoptic_png(tmp_path / "none.png")
