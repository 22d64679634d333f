"""Points of masks, against Detectron2's own functions."""

import pytest
import torch
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)

from proscale.modeling.losses.point_sampling import sample_targets, uncertain_points


def in_order(points):
    """Points ``(P, 2)`` from left to right."""
    return points[points[:, 0].argsort()]


@pytest.mark.parametrize(("num_masks", "share"), [(3, 0.75), (2, 0.0), (2, 1.0), (0, 0.75)])
def test_points_are_those_of_detectron2(num_masks, share):
    torch.manual_seed(0)
    logits = torch.randn(num_masks, 1, 9, 12)
    torch.manual_seed(1)
    found = uncertain_points(logits, 40, oversample_ratio=3.0, importance_sample_ratio=share)
    torch.manual_seed(1)
    expected = get_uncertain_point_coords_with_randomness(
        logits, lambda values: -values.abs(), 40, 3.0, share
    )
    assert found.shape == expected.shape == (num_masks, 40, 2)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(in_order(ours), in_order(theirs))


@pytest.mark.parametrize("matched", [[2, 0, 1], [2, 0], [1], []])
def test_targets_are_sampled_where_their_predictions_are(matched):
    torch.manual_seed(0)
    masks, points = (torch.rand(3, 8, 10) > 0.5).float(), torch.rand(len(matched), 20, 2)
    matched = torch.tensor(matched, dtype=torch.int64)
    expected = point_sample(masks[matched][:, None], points, align_corners=False)[:, 0]
    assert torch.equal(sample_targets(masks, matched, points), expected)
