"""Matcher and criterion against the published implementation's numbers."""

import math

import pytest
import torch

from proscale.modeling import HungarianMatcher, SetCriterion


@pytest.fixture
def case(golden):
    data = golden("criterion")
    outputs = {
        "pred_logits": data.pred_logits,
        "pred_masks": data.pred_masks,
        "aux_outputs": [
            {"pred_logits": data.aux0_logits, "pred_masks": data.aux0_masks},
            {"pred_logits": data.aux1_logits, "pred_masks": data.aux1_masks},
        ],
    }
    targets = [
        {"labels": getattr(data, f"target{i}_labels"), "masks": getattr(data, f"target{i}_masks")}
        for i in range(3)
    ]
    return data, outputs, targets


def matcher_of(meta: dict) -> HungarianMatcher:
    return HungarianMatcher(**meta["cost"], num_points=meta["num_points"])


def test_matches_equal_published(case):
    data, outputs, targets = case
    matches = matcher_of(data.meta)(outputs, targets)
    for index, (queries, matched) in enumerate(matches):
        assert torch.equal(queries, getattr(data, f"match{index}_queries"))
        assert torch.equal(matched, getattr(data, f"match{index}_targets"))


def test_mean_losses_equal_published(case):
    data, outputs, targets = case
    meta = data.meta
    criterion = SetCriterion(
        meta["num_classes"],
        matcher_of(meta),
        meta["weight_dict"],
        meta["eos_coef"],
        ["labels", "masks"],
        meta["num_points"],
        meta["oversample_ratio"],
        meta["importance_sample_ratio"],
    )
    runs = []
    for seed in range(meta["seeds"]):
        torch.manual_seed(seed)
        runs.append(criterion(outputs, targets))
    assert set(runs[0]) == set(meta["loss_mean"])
    for name, expected in meta["loss_mean"].items():
        mean = torch.stack([run[name] for run in runs]).mean().item()
        error = meta["loss_std"][name] / math.sqrt(meta["seeds"])
        # Both means are samples of the same distribution; loss_ce does not depend on the points.
        assert mean == pytest.approx(expected, abs=max(4 * error, 1e-5)), name
