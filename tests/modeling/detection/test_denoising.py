"""Properties of contrastive denoising (DINO, §3.3)."""

import pytest
import torch

from proscale.modeling.detection.boxes import corners
from proscale.modeling.detection.denoising import (
    DenoisingArguments,
    contrastive_denoising,
    denoising_mask,
    noised_boxes,
    noised_labels,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_positives_stay_nearer_than_negatives():
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.1]).expand(4000, 4)
    half = boxes[:, 2:].tile(2) / 2
    for negative, low, high in ((False, 0, 1), (True, 1, 2)):
        flags = torch.full((len(boxes),), negative)
        moved = corners(noised_boxes(boxes, flags, 1.0))
        distance = (moved - corners(boxes)).abs() / half
        assert distance.min() >= low - 1e-5 and distance.max() <= high + 1e-5
        assert distance.mean() == pytest.approx((low + high) / 2, abs=0.02)


def test_boxes_stay_within_the_image():
    boxes = torch.rand(2000, 4)
    moved = corners(noised_boxes(boxes, torch.ones(2000, dtype=torch.bool), 1.0))
    assert moved.min() >= -1e-6 and moved.max() <= 1 + 1e-6


def test_no_noise_changes_nothing():
    boxes = torch.tensor([[0.4, 0.6, 0.2, 0.3]])
    torch.testing.assert_close(noised_boxes(boxes, torch.tensor([True]), 0.0), boxes)
    labels = torch.arange(10)
    assert torch.equal(noised_labels(labels, 10, 0.0), labels)


def test_half_of_the_noise_redraws_labels():
    labels = torch.full((20000,), 3)
    drawn = noised_labels(labels, 10, 0.5)
    # A tenth of those that are drawn anew are what they were.
    assert (drawn != 3).float().mean() == pytest.approx(0.25 * 0.9, abs=0.01)
    assert set(drawn.tolist()) == set(range(10))


def test_groups_see_themselves_and_matching_queries_only():
    mask = denoising_mask(places=3, groups=2, num_queries=4)
    looks = ~mask
    assert looks.shape == (16, 16)
    for first in (0, 6):
        group = slice(first, first + 6)
        assert looks[group, group].all() and looks[group, 12:].all()
        assert looks[group].sum() == 6 * (6 + 4)
    assert looks[12:, 12:].all() and not looks[12:, :12].any()


@pytest.mark.parametrize(("most", "groups"), [(0, 100), (1, 100), (7, 14), (100, 1), (250, 1)])
def test_groups(most, groups):
    assert DenoisingArguments(100, 0.5, 1.0).groups(most) == groups


def test_places_of_an_images_targets():
    targets = [
        {"labels": torch.tensor([1, 2]), "boxes": torch.full((2, 4), 0.5)},
        {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    label_enc = torch.nn.Embedding(4, 8)
    queries = contrastive_denoising(
        targets, label_enc, DenoisingArguments(6, 0.0, 0.0), num_queries=5, most=3, eps=1e-3
    )
    assert queries.content.shape == (2, 12, 8) and queries.boxes.shape == (2, 12, 4)
    # Without noise positives and negatives are the targets; all else is padding.
    rows = queries.content[0].view(2, 2, 3, 8)
    torch.testing.assert_close(rows[:, :, :2], label_enc.weight[1:3].expand(2, 2, 2, 8))
    assert not rows[:, :, 2].any() and not queries.content[1].any()
    assert queries.matches[0][0].tolist() == [0, 1, 6, 7]
    assert queries.matches[0][1].tolist() == [0, 1, 0, 1]
    assert queries.matches[1][0].numel() == 0


def test_no_targets_no_queries():
    target = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    label_enc = torch.nn.Embedding(4, 8)
    queries = contrastive_denoising(
        [target], label_enc, DenoisingArguments(6, 0.5, 1.0), num_queries=5, most=0, eps=1e-3
    )
    assert queries.content.shape == (1, 0, 8) and not queries.mask.any()
    queries.content.sum().backward()
    assert not label_enc.weight.grad.any()
