"""The meta-architecture: losses of a batch, results of images."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from proscale.config.schema import check_values
from proscale.errors import ConfigError
from proscale.modeling.detection.boxes import (
    corners,
    inverse_sigmoid,
    propose_boxes,
    relative_boxes,
)
from proscale.modeling.pixel_decoders.deformable_encoder import plan_tokens


def build(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def samples_of_two_sizes(make_sample):
    return [make_sample(96, 128, 3), make_sample(128, 80, 0)]


@pytest.mark.parametrize("encoder", ["full", "proscale", "lite"])
@pytest.mark.parametrize("queries", ["mixed", "deformable", "learned"])
def test_every_parameter_learns(queries, encoder, detector_cfg, make_sample):
    detector_cfg.MODEL.DETECTOR.QUERIES = queries
    detector_cfg.MODEL.DETECTOR.ENCODER = encoder
    check_values(detector_cfg)
    model = build(detector_cfg).train()
    losses = model(samples_of_two_sizes(make_sample))
    kinds = {"mixed": 2 + 1 + 2, "deformable": 2 + 1, "learned": 2}
    assert len(losses) == 3 * kinds[queries]
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    # Also of a batch without targets: processes wait for each other's gradients.
    sum(model([make_sample(64, 64, 0)]).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_batch_equals_single_images(detector_cfg, make_sample):
    model = build(detector_cfg).eval()
    samples = [*samples_of_two_sizes(make_sample), make_sample(96, 128, 1)]
    for sample, result in zip(samples, model(samples), strict=True):
        alone = model([sample])[0]["instances"]
        found = result["instances"]
        assert torch.equal(found.pred_classes, alone.pred_classes)
        torch.testing.assert_close(found.scores, alone.scores)
        torch.testing.assert_close(found.pred_boxes.tensor, alone.pred_boxes.tensor)


@torch.no_grad()
def test_results_have_the_size_asked_for(detector_cfg, make_sample):
    detector_cfg.MODEL.DETECTOR.DETECTIONS = 7
    sample = make_sample(96, 128, 0)
    instances = build(detector_cfg).eval()([sample])[0]["instances"]
    assert instances.image_size == (192, 256) and len(instances) == 7
    boxes = instances.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes <= torch.tensor([256, 192, 256, 192])).all()
    assert torch.equal(instances.scores, instances.scores.sort(descending=True).values)
    del sample["height"], sample["width"]
    assert build(detector_cfg).eval()([sample])[0]["instances"].image_size == (96, 128)


@torch.no_grad()
def test_parts_of_a_batch_add_up(detector_cfg, make_sample):
    """Gradient accumulation: losses weighted by images are those of the whole batch."""
    detector_cfg.MODEL.DETECTOR.DN_NUMBER = 0
    model = build(detector_cfg).train()
    samples = [make_sample(96, 128, count) for count in (4, 0, 1, 2)]
    whole = model(samples)
    counts = [len(sample["instances"]) for sample in samples]
    parts = [model(samples[:1], target_counts=counts), model(samples[1:], target_counts=counts)]
    for name, loss in whole.items():
        total = parts[0][name] / 4 + parts[1][name] * 3 / 4
        torch.testing.assert_close(total, loss, rtol=1e-4, atol=1e-5)


def test_boxes_beyond_the_image_and_without_area_have_finite_losses(detector_cfg, make_sample):
    sample = make_sample(64, 96, 0)
    instances = Instances((64, 96))
    boxes = [[-30.0, -20.0, 200.0, 90.0], [200.0, 200.0, 220.0, 230.0], [10.0, 10.0, 10.0, 10.0]]
    instances.gt_boxes = Boxes(torch.tensor(boxes))
    instances.gt_classes = torch.tensor([0, 1, 2])
    model = build(detector_cfg).train()
    losses = model([sample | {"instances": instances}])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, detector_cfg, make_sample):
    model, samples = build(detector_cfg).train(), samples_of_two_sizes(make_sample)
    torch.manual_seed(1)
    exact = sum(model(samples).values()).item()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype):
        losses = model(samples)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert sum(losses.values()).item() == pytest.approx(exact, rel=0.05)
    sum(losses.values()).backward()


@torch.no_grad()
def test_inference_dtype(detector_cfg, make_sample):
    detector_cfg.MODEL.MASK_FORMER.TEST.DTYPE = "bfloat16"
    instances = build(detector_cfg).eval()([make_sample(64, 96, 0)])[0]["instances"]
    assert instances.scores.dtype == instances.pred_boxes.tensor.dtype == torch.float32


def test_boxes_there_and_back():
    boxes = torch.tensor([[10.0, 20.0, 50.0, 80.0]])
    relative = relative_boxes(boxes, (100, 200))
    torch.testing.assert_close(relative, torch.tensor([[0.15, 0.5, 0.2, 0.6]]))
    scale = torch.tensor([200, 100, 200, 100])
    torch.testing.assert_close(corners(relative) * scale, boxes)
    torch.testing.assert_close(inverse_sigmoid(relative, 1e-5).sigmoid(), relative)


def test_proposals_grow_with_the_level():
    plan = plan_tokens([(1, 2), (2, 4)], torch.zeros(2, 8))
    logits, valid = propose_boxes(plan)
    assert valid.all()
    expected = torch.tensor([[0.25, 0.5, 0.1, 0.1], [0.125, 0.25, 0.05, 0.05]])
    torch.testing.assert_close(logits[0, [0, 2]].sigmoid(), expected)


def test_proposals_at_the_border_are_invalid():
    logits, valid = propose_boxes(plan_tokens([(1, 100)], torch.zeros(1, 8)))
    assert valid[0].nonzero()[:, 0].tolist() == list(range(1, 99))
    assert logits[0, 0].isposinf().all()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NUM_LEVELS", 2, "NUM_LEVELS is 2: expected at least as many as the backbone's levels"),
        ("PROSCALE_NUM_LAYERS", [3, 3, 3], "expected one number for each of the encoder's 4"),
        ("BOX_REFINEMENT", False, "expected True with MODEL.DETECTOR.QUERIES mixed"),
        ("QUERIES", "none", "expected mixed or deformable or learned"),
        ("DN_NUMBER", -1, "expected whole numbers from 0 to 1000"),
    ],
)
def test_wrong_keys(key, value, message, detector_cfg):
    detector_cfg.MODEL.DETECTOR.ENCODER = "proscale"
    detector_cfg.MODEL.DETECTOR[key] = value
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        check_values(detector_cfg)
