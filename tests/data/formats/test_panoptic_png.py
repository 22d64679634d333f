"""Coding of segment ids as colours."""

import numpy as np
import pytest
from PIL import Image

from proscale.data.formats.panoptic_png import (
    MAX_ID,
    id_to_rgb,
    read_panoptic_png,
    rgb_to_id,
    write_panoptic_png,
)


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
