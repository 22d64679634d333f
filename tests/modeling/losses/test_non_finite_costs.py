"""Costs that are not finite are told by term, image and output."""

import pytest
import torch


def make_outputs() -> dict:
    return {"pred_logits": torch.zeros(2, 3, 5), "pred_masks": torch.zeros(2, 3, 8, 8)}


TARGETS = [{"labels": torch.tensor([1]), "masks": torch.ones(1, 8, 8)}] * 2


@pytest.mark.parametrize(
    ("name", "value", "terms"),
    [
        ("pred_logits", float("nan"), "class cost"),
        ("pred_logits", float("inf"), "class cost"),
        ("pred_masks", float("nan"), "mask cost and dice cost"),
        ("pred_masks", float("-inf"), "mask cost"),
    ],
)
def test_term_and_image_are_told(matcher, name, value, terms):
    outputs = make_outputs()
    outputs[name][1, 2] = value
    with pytest.raises(FloatingPointError) as error:
        matcher(outputs, TARGETS)
    assert str(error.value) == f"{terms} of image 1 of the batch"


def test_costs_that_overflow_together(matcher):
    matcher.cost_class, matcher.cost_dice = -3e38, 3e38
    outputs = make_outputs()
    outputs["pred_logits"][..., 1] = 100.0
    outputs["pred_masks"] -= 100.0
    with pytest.raises(FloatingPointError, match="sum of the costs of image 0"):
        matcher(outputs, TARGETS)


@pytest.mark.parametrize(("faulty", "told"), [(None, "the last output"), (1, "auxiliary output 1")])
def test_output_is_told(criterion, faulty, told):
    outputs = {**make_outputs(), "aux_outputs": [make_outputs() for _ in range(3)]}
    wrong = outputs if faulty is None else outputs["aux_outputs"][faulty]
    wrong["pred_logits"][0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError) as error:
        criterion(outputs, TARGETS)
    assert str(error.value) == f"matching {told}: class cost of image 0 of the batch"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_costs_and_losses_of_half_precision_are_float32(criterion, dtype):
    """Sums over points that float16 cannot hold: 30 at each of 64x64 points is above 65504."""
    outputs = {name: value.to(dtype) for name, value in make_outputs().items()}
    outputs["pred_masks"] -= 30.0
    criterion.num_points = criterion.matcher.num_points = 64 * 64
    with torch.autocast("cpu", torch.bfloat16):
        losses = criterion(outputs, TARGETS)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(loss.isfinite() for loss in losses.values())
