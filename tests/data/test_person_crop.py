"""Crops of persons against the published implementation."""

import numpy as np
import pytest

from proscale.data import PersonCrop


@pytest.fixture(params=range(3))
def case(request, golden, fill):
    """A crop, the golden numbers of its person, and the image."""
    expected, index = golden("pose_codec"), request.param
    meta = expected.meta
    crop = PersonCrop(
        meta["boxes"][index], meta["input_size"], meta["padding"], meta["rotations"][index]
    )
    image = fill.random_image("pose_codec", meta["image_height"], meta["image_width"])
    return crop, lambda name: getattr(expected, name)[index].numpy(), image


def test_geometry_equals_published(case):
    crop, expected, _ = case
    np.testing.assert_allclose(crop.center, expected("centers"), rtol=1e-6)
    np.testing.assert_allclose(crop.scale, expected("scales"), rtol=1e-6)
    np.testing.assert_allclose(crop.matrix, expected("matrices"), rtol=1e-6, atol=1e-6)


def test_points_equal_published(case):
    crop, expected, _ = case
    there = crop.to_input(expected("points"))
    np.testing.assert_allclose(there, expected("points_in_input"), rtol=1e-3, atol=1e-4)
    back = crop.to_image(expected("points_in_input"))
    np.testing.assert_allclose(back, expected("points_back"), rtol=1e-3, atol=1e-4)


def test_pixels_equal_published(case):
    crop, expected, image = case
    pixels = crop.apply_image(image.numpy().astype(np.uint8).transpose(1, 2, 0))
    assert pixels.shape == (384, 288, 3)
    difference = np.abs(pixels[::3, ::3].astype(int) - expected("crops"))
    # Rounding of the rotated matrix.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4


def test_the_way_back():
    crop = PersonCrop([-20.0, 30.0, 90.5, 411.0], (480, 640))
    points = np.random.default_rng(0).uniform(-100, 500, (6, 2))
    np.testing.assert_allclose(crop.to_image(crop.to_input(points)), points, atol=1e-3)


def test_the_crop_has_the_aspect_ratio_of_the_input():
    for box in ([0, 0, 10, 100], [0, 0, 100, 10]):
        crop = PersonCrop(box, (288, 384), padding=1.0)
        assert crop.scale[0] / crop.scale[1] == pytest.approx(288 / 384)
        # The padded box is inside.
        assert (crop.scale >= np.array(box[2:]) - 1e-4).all()
        # Its middle stays.
        middle = np.array(box[2:]) / 2
        np.testing.assert_allclose(crop.to_input(middle), [144, 192], atol=1e-3)
