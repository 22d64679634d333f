"""The closed form of a detector's cost against the count on a trace."""

from pathlib import Path

import pytest

from proscale.config import setup_cfg
from proscale.cost.detection_cost import (
    DetectorDesign,
    affordable_detectors,
    decoder_cost,
    encoder_cost,
    projection_cost,
    proposal_cost,
)
from proscale.cost.encoder_cost import full_cost
from proscale.cost.flops import count_flops
from proscale.cost.model_cost import list_parts
from proscale.cost.shape_tracing import build_without_weights

CONFIGS = Path(__file__).parents[2] / "configs" / "coco" / "detection"


def config(name, *keys):
    return setup_cfg(str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", *keys])


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("dino_r50", ["MODEL.DETECTOR.NUM_LEVELS", "5"]),
        ("dino_proscale_r50_0222", []),
        ("dino_lite_r50", ["MODEL.LITE_DETR.KEY_AWARE", "True"]),
    ],
)
def test_closed_form_equals_the_count(name, keys):
    cfg, size = config(name, *keys), (250, 330)
    model = build_without_weights(cfg)
    parts = {part.name: part.multiply_adds for part in list_parts(model, count_flops(model, size))}
    design = DetectorDesign.from_config(cfg, size)
    assert design.queries == 900
    assert parts["input projections"] == projection_cost(design)
    assert parts["encoder"] == encoder_cost(design, cfg)
    assert parts["transformer decoder"] == decoder_cost(design)
    assert parts["rest of the head"] == proposal_cost(design)


@pytest.mark.parametrize(("layers", "saving"), [(3, 0.35), (2, 0.57), (1, 0.78)])
@pytest.mark.parametrize("size", [(800, 1216), (1024, 2048)])
def test_savings_of_proscale(layers, saving, size):
    design = DetectorDesign.from_config(config("dino_r50"), size)
    cost = encoder_cost(design, config(f"dino_proscale_r50_0{layers}{layers}{layers}"))
    assert 1 - cost / full_cost(design, 6) == pytest.approx(saving, abs=0.005)


def test_affordable_encoders():
    design = DetectorDesign.from_config(config("dino_r50"), (800, 1216))
    found = affordable_detectors(design, 0.25, full_layers=6, max_layers=2)
    assert all(one.share <= 0.25 for one in found)
    assert (0, 1, 1, 1) in [one.layers for one in found]
    assert (0, 2, 2, 2) not in [one.layers for one in found]
