"""Properties of matcher and criterion; points against Detectron2's own functions."""

import pytest
import torch
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)

from proscale.modeling import HungarianMatcher, SetCriterion
from proscale.modeling.losses.criterion import sample_targets, uncertain_points
from proscale.modeling.losses.matcher import pairwise_dice_cost, pairwise_mask_cost

COUNTS = (2, 0, 5, 1)


def batch(counts=COUNTS, queries=6):
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "pred_logits": torch.randn(len(counts), queries, 5, generator=generator),
        # Masks without structure: where points fall matters at the borders only.
        "pred_masks": torch.randn(len(counts), queries, 1, 1, generator=generator).expand(
            -1, -1, 8, 8
        ),
    }
    targets = [
        {
            "labels": torch.randint(0, 4, (count,), generator=generator),
            "masks": torch.ones(count, 16, 16, dtype=torch.bool),
        }
        for count in counts
    ]
    return outputs, targets


def test_gradients_by_way_of_the_masks_factors_are_those_of_the_masks(criterion):
    outputs, targets = batch()
    factors = {"mask_embed": torch.randn(2, 4, 6, 3), "mask_features": torch.randn(4, 3, 8, 8)}
    losses, gradients = [], []
    for given in (True, False):
        leaves = {name: factor.clone().requires_grad_() for name, factor in factors.items()}
        features = leaves["mask_features"]
        last, auxiliary = (
            {
                "pred_logits": outputs["pred_logits"],
                "pred_masks": (embed @ features.flatten(2)).unflatten(2, (8, 8)),
                **({"mask_embed": embed} if given else {}),
            }
            for embed in leaves["mask_embed"]
        )
        last |= {"aux_outputs": [auxiliary]} | ({"mask_features": features} if given else {})
        torch.manual_seed(0)
        losses.append(criterion(last, targets))
        sum(losses[-1].values()).backward()
        gradients.append({name: leaf.grad for name, leaf in leaves.items()})
    assert "loss_mask_0" in losses[0]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_weighted_parts_add_up_to_the_batch(criterion, cut):
    outputs, targets = batch()
    whole = criterion(outputs, targets)
    total = dict.fromkeys(whole, 0.0)
    for part in (slice(0, cut), slice(cut, None)):
        losses = criterion(
            {name: value[part] for name, value in outputs.items()},
            targets[part],
            target_counts=COUNTS,
        )
        share = len(targets[part]) / len(targets)
        total = {name: total[name] + losses[name] * share for name in losses}
    for name in whole:
        tolerance = 1e-5 if name == "loss_ce" else 0.03
        torch.testing.assert_close(total[name], whole[name], rtol=tolerance, atol=0)


def test_class_loss_is_the_weighted_mean(criterion):
    outputs, targets = batch()
    matches = criterion.matcher(outputs, targets)
    classes = torch.full((4, 6), 4)
    for image, (queries, matched) in enumerate(matches):
        classes[image, queries] = targets[image]["labels"][matched]
    expected = torch.nn.functional.cross_entropy(
        outputs["pred_logits"].transpose(1, 2), classes, criterion.empty_weight
    )
    torch.testing.assert_close(criterion(outputs, targets)["loss_ce"], expected)


def test_batch_without_any_target_gives_finite_losses_and_gradients(criterion):
    outputs, targets = batch((0, 0))
    leaves = {name: value.clone().requires_grad_() for name, value in outputs.items()}
    losses = criterion(leaves, targets)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    sum(losses.values()).backward()
    # Every parameter takes part, as distributed training expects.
    assert leaves["pred_masks"].grad.eq(0).all()
    assert leaves["pred_logits"].grad.isfinite().all()


def test_more_targets_than_queries(criterion):
    outputs, targets = batch((9,), queries=3)
    ((queries, matched),) = criterion.matcher(outputs, targets)
    assert queries.tolist() == [0, 1, 2]
    assert len(set(matched.tolist())) == 3
    assert all(loss.isfinite() for loss in criterion(outputs, targets).values())


def test_perfect_prediction_costs_almost_nothing(criterion):
    _, targets = batch((3,))
    masks = torch.zeros(3, 16, 16, dtype=torch.bool)
    masks[0, :8], masks[1, 8:, :8], masks[2, 8:, 8:] = True, True, True
    targets[0]["masks"] = masks
    order = [2, 0, 1]
    logits = torch.nn.functional.one_hot(targets[0]["labels"][order], 5) * 50.0
    outputs = {"pred_logits": logits[None], "pred_masks": (masks[order].float() * 100 - 50)[None]}
    ((_, matched),) = criterion.matcher(outputs, targets)
    assert matched.tolist() == order
    losses = criterion(outputs, targets)
    # Points between cells see both sides of an edge.
    assert losses["loss_ce"] < 1e-5
    assert losses["loss_dice"] < 0.2


def test_pairwise_costs_equal_losses_of_pairs():
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 10), (torch.rand(2, 10) > 0.5).float()
    for q in range(3):
        for n in range(2):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[q], targets[n])
            torch.testing.assert_close(pairwise_mask_cost(logits, targets)[q, n], loss)
            probability = logits[q].sigmoid()
            dice = 1 - (2 * (probability * targets[n]).sum() + 1) / (
                probability.sum() + targets[n].sum() + 1
            )
            torch.testing.assert_close(pairwise_dice_cost(logits, targets)[q, n], dice)


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="nothing to match by"):
        HungarianMatcher(0, 0, 0, 10)
    with pytest.raises(ValueError, match="num_points is 0: expected"):
        HungarianMatcher(1, 1, 1, 0)
    matcher = HungarianMatcher(1, 1, 1, 1)
    with pytest.raises(ValueError, match="expected labels, masks"):
        SetCriterion(2, matcher, {}, 0.1, ["boxes"], 1, 3.0, 0.75)
    with pytest.raises(ValueError, match=r"oversample_ratio is 0\.5"):
        SetCriterion(2, matcher, {}, 0.1, ["masks"], 1, 0.5, 0.75)


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
