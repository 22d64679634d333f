"""Multiply-adds against those counted on the published implementations."""

import json
from pathlib import Path

import pytest
from detectron2.modeling import build_model

from proscale.analysis import count_flops

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "coco" / "panoptic"
REFERENCE = json.loads((ROOT / "tests" / "golden" / "gflops_reference.json").read_text())
# A count runs the model once: seconds each.
FAST = ("mask2former-r50", "proscale-r50-333", "proscale-swint-111")
CASES = [
    pytest.param(
        case,
        id=f"{case['model']}-{case['height']}",
        marks=[] if case["model"] in FAST and case["height"] == 800 else pytest.mark.slow,
    )
    for case in REFERENCE
    if not case["model"].endswith("conv")
]


def build(cfg, name):
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


def config_of(model):
    family, backbone, *layers = model.split("-")
    return "_".join([family, {"swint": "swin_tiny"}.get(backbone, backbone), *layers])


@pytest.mark.parametrize("case", CASES)
def test_equals_published_by_module(case, cfg):
    model = build(cfg, config_of(case["model"]))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        case["params"], abs=0.0006
    )
    count = count_flops(model, (case["height"], case["width"]))
    for module, expected in case["modules"].items():
        if module == "sem_seg_head.predictor":
            # The published count leaves out the products of queries with keys in cross-attention.
            continue
        assert count.by_module[module] / 1e9 == pytest.approx(expected, rel=0.005), module
    assert count.encoder == count.by_module["sem_seg_head.pixel_decoder"]
    parts = (count.by_module[module] for module in ("backbone", "sem_seg_head.predictor"))
    # Up-sampling in the pyramid is counted with the head.
    assert count.total == pytest.approx(count.encoder + sum(parts), rel=0.001)


def test_predictor_counts_both_products_of_attention(cfg):
    (case,) = (c for c in REFERENCE if (c["model"], c["height"]) == ("proscale-r50-111", 800))
    model = build(cfg, config_of(case["model"]))
    count = count_flops(model, (case["height"], case["width"]))
    tokens = [(case["height"] // stride) * (case["width"] // stride) for stride in (32, 16, 8)]
    # Three layers a level, 100 queries, width 256.
    missing = 3 * sum(tokens) * 100 * 256 / 1e9
    expected = case["modules"]["sem_seg_head.predictor"] + missing
    found = count.by_module["sem_seg_head.predictor"] / 1e9
    assert found == pytest.approx(expected, rel=0.001)


def test_the_model_keeps_its_mode(small_cfg):
    model = build_model(small_cfg).train()
    count_flops(model, (64, 64))
    assert model.training
    assert model.backbone.training
