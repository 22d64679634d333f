"""Outputs, gradients, matches and losses against the published implementations'."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec

from proscale.modeling.detection import (
    DeformableDETRHead,
    DetectionCriterion,
    DetectionMatcher,
    DINOHead,
)
from proscale.modeling.detection.boxes import keep_best
from proscale.modeling.detection.denoising import DenoisingArguments, contrastive_denoising


def assert_near(found, expected, tolerance=1e-3):
    """Relative to the spread of the tensor."""
    tolerance *= expected.std().item()
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("case", "head"),
    [("detection_dino", DINOHead), ("detection_deformable_two_stage", DeformableDETRHead)],
)
def test_heads_equal_published(case, head, golden, fill):
    expected = golden(case)
    meta = expected.meta
    shapes = {k: ShapeSpec(channels=c, stride=s) for k, (c, s) in meta["shapes"].items()}
    model = head(shapes, **meta["args"])
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == meta["state"]
    fill.fill_state_dict(model)
    # In float64, because a ReLU's input of some 1e-7 is on this or that side of 0 in float32.
    model.double()
    features = {}
    for name, (channels, stride) in meta["shapes"].items():
        size = (math.ceil(meta["height"] / stride), math.ceil(meta["width"] / stride))
        shape = (meta["batch"], channels, *size)
        features[name] = fill.random_input(f"{case}.{name}", shape).double().requires_grad_()

    outputs = model(features)
    names = ("logits", "boxes", "proposal_logits", "proposal_boxes")
    names = [name for name in names if hasattr(expected, name)]
    if hasattr(expected, "kept_tokens"):
        assert torch.equal(outputs["kept_tokens"], expected.kept_tokens)
    total = 0
    for name in names:
        assert_near(outputs[name], getattr(expected, name))
        weights = fill.random_input(f"{case}.g{name}", tuple(outputs[name].shape))
        total = total + (outputs[name] * weights).sum()
    total.backward()
    for name, feature in features.items():
        assert_near(feature.grad, getattr(expected, f"grad_{name}"), 5e-3)


@pytest.fixture
def losses(golden):
    """The golden case, its predictions by layer and its targets."""
    data = golden("detection_losses")
    layers = [
        {
            "pred_logits": getattr(data, f"logits{i}").requires_grad_(),
            "pred_boxes": getattr(data, f"boxes{i}").requires_grad_(),
        }
        for i in range(data.meta["layers"])
    ]
    targets = [
        {"labels": getattr(data, f"target{i}_labels"), "boxes": getattr(data, f"target{i}_boxes")}
        for i in range(3)
    ]
    return data, layers, targets


def matcher_of(meta):
    return DetectionMatcher(**{f"cost_{name}": cost for name, cost in meta["cost"].items()})


def test_matches_equal_published(losses):
    data, layers, targets = losses
    matcher = matcher_of(data.meta)
    for number, prediction in enumerate(layers):
        for image, (queries, matched) in enumerate(matcher(prediction, targets)):
            assert torch.equal(queries, getattr(data, f"match{number}_{image}_queries"))
            assert torch.equal(matched, getattr(data, f"match{number}_{image}_targets"))


def test_losses_equal_published(losses):
    data, layers, targets = losses
    meta = data.meta
    criterion = DetectionCriterion(
        meta["num_classes"], matcher_of(meta), meta["weights"], meta["focal_alpha"]
    )
    found = criterion({**layers[-1], "aux_outputs": layers[:-1]}, targets)
    assert found.keys() == meta["loss"].keys()
    for name, loss in found.items():
        assert loss.item() == pytest.approx(meta["loss"][name], rel=1e-4), name
    total = sum(criterion.weigh(found).values())
    assert total.item() == pytest.approx(meta["total"], rel=1e-4)
    total.backward()
    assert_near(layers[-1]["pred_logits"].grad, data.grad_logits, 5e-3)
    assert_near(layers[-1]["pred_boxes"].grad, data.grad_boxes, 5e-3)


def test_results_equal_published(losses):
    data, layers, _ = losses
    meta = data.meta
    for image in range(3):
        prediction = (layers[-1][name][image] for name in ("pred_logits", "pred_boxes"))
        scores, classes, boxes = keep_best(*prediction, meta["image_size"], meta["top_k"])
        assert torch.equal(classes, getattr(data, f"result{image}_labels"))
        torch.testing.assert_close(scores, getattr(data, f"result{image}_scores"))
        assert_near(boxes, getattr(data, f"result{image}_boxes"))


def test_denoising_equals_published(golden):
    data = golden("detection_denoising")
    meta = data.meta
    targets = [
        {"labels": torch.zeros(count, dtype=torch.int64), "boxes": torch.full((count, 4), 0.5)}
        for count in meta["counts"]
    ]
    queries = contrastive_denoising(
        targets,
        torch.nn.Embedding(meta["num_classes"] + 1, 8),
        DenoisingArguments(meta["denoising_queries"], label_noise=0.5, box_noise=1.0),
        num_queries=meta["num_queries"],
        most=max(meta["counts"]),
        eps=1e-3,
    )
    assert queries.groups == meta["groups"]
    assert torch.equal(~queries.mask, data.attention_mask)
    for image, (found, matched) in enumerate(queries.matches):
        assert torch.equal(found, getattr(data, f"positive_queries{image}"))
        assert torch.equal(matched, getattr(data, f"positive_targets{image}"))
        positive = torch.zeros(meta["padded"], dtype=torch.bool)
        positive[found] = True
        places = data.positive[image]
        # The file marks all places of positive queries, those of padding too.
        assert torch.equal(positive & places, positive)
