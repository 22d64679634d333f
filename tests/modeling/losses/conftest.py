"""A small criterion."""

import pytest
import torch

from proscale.modeling import HungarianMatcher, SetCriterion


@pytest.fixture
def matcher():
    return HungarianMatcher(cost_class=2, cost_mask=5, cost_dice=5, num_points=2048)


@pytest.fixture
def criterion(matcher):
    torch.manual_seed(0)  # of the points
    return SetCriterion(
        num_classes=4,
        matcher=matcher,
        weight_dict={},
        eos_coef=0.1,
        losses=["labels", "masks"],
        num_points=2048,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )
