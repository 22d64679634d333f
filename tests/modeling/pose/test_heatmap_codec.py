"""Heatmaps against the published implementation, and properties of the codec."""

import pytest
import torch
from torch.nn import functional as F

from proscale.modeling.pose import HeatmapCodec, flip_heatmaps, heatmap_loss

CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture
def case(golden):
    return golden("pose_codec")


@pytest.fixture
def codec(case):
    meta = case.meta
    return HeatmapCodec(meta["input_size"], meta["heatmap_size"], meta["sigma"])


@pytest.fixture
def noise(fill):
    """Smooth maps (3, 17, 96, 72) by the name of the golden input."""

    def make(name):
        coarse = fill.random_input(f"pose_codec.{name}", (3, 17, 24, 18))
        return F.interpolate(coarse, scale_factor=4, mode="bicubic", align_corners=False)

    return make


def test_encoding_equals_published(case, codec):
    heatmaps, weights = codec.encode(case.keypoints, case.visible)
    torch.testing.assert_close(heatmaps, case.heatmaps, **CLOSE)
    torch.testing.assert_close(weights, case.weights)


def test_decoding_equals_published(case, codec, noise):
    """Noise, borders, equal maxima, and maps without a positive value."""
    maps = torch.cat((0.8 * case.heatmaps + 0.1 * noise("noise"), case.odd_maps[None]))
    keypoints, scores = codec.decode(maps)
    torch.testing.assert_close(keypoints, case.decoded, **CLOSE)
    torch.testing.assert_close(scores, case.scores, **CLOSE)


def test_flip_test_equals_published(case, codec, noise):
    maps = (0.8 * case.heatmaps + 0.1 * noise("noise"))[:1]
    flipped = flip_heatmaps(maps, case.meta["flip_indices"])
    torch.testing.assert_close(flipped[0, :, ::4, ::4], case.flipped, **CLOSE)
    keypoints, scores = codec.decode((maps + flipped) / 2)
    torch.testing.assert_close(keypoints[0], case.flip_keypoints, **CLOSE)
    torch.testing.assert_close(scores[0], case.flip_scores, **CLOSE)


def test_loss_equals_published(case, codec, noise):
    targets, weights = codec.encode(case.keypoints, case.visible)
    torch.testing.assert_close(heatmap_loss(0.3 * noise("pred"), targets, weights), case.loss)


def test_arrays_are_taken_like_tensors(case, codec):
    heatmaps, weights = codec.encode(case.keypoints.numpy(), case.visible.numpy())
    keypoints, _ = codec.decode(heatmaps.numpy())
    assert keypoints.shape == (3, 17, 2)
    torch.testing.assert_close(weights, case.weights)


def test_a_keypoint_is_found_within_a_quarter_of_a_cell():
    codec = HeatmapCodec((64, 96), (16, 24), sigma=2.0)
    generator = torch.Generator().manual_seed(0)
    # Away from the border, where nothing is moved.
    keypoints = 10 + torch.rand(5, 7, 2, generator=generator) * torch.tensor([44.0, 76.0])
    heatmaps, weights = codec.encode(keypoints, torch.ones(5, 7))
    found, scores = codec.decode(heatmaps)
    assert (found - keypoints).abs().max() <= 2
    assert (scores == 1).all()
    assert (weights == 1).all()


def test_flipping_twice_without_a_shift_gives_the_same():
    maps = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    indices = [0, 2, 1]
    twice = flip_heatmaps(flip_heatmaps(maps, indices, shift=False), indices, shift=False)
    torch.testing.assert_close(twice, maps)


def test_unlabelled_keypoints_have_no_loss():
    codec = HeatmapCodec((32, 32), (8, 8))
    targets, weights = codec.encode(torch.tensor([[[8.0, 8.0], [9.0, 9.0]]]), torch.zeros(1, 2))
    assert not targets.any()
    assert heatmap_loss(torch.randn(1, 2, 8, 8), targets, weights) == 0
