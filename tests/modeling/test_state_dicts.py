"""Parameter names and shapes of the full-size models are the published ones."""

import json
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from proscale import add_proscale_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "coco" / "panoptic"
STATE_DICTS = ROOT / "tests" / "golden" / "state_dicts"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("mask2former_r50", "mask2former_r50"),
        ("proscale_r50_333", "proscale_r50_333"),
        ("mask2former_swin_tiny", "mask2former_swin_tiny"),
        ("proscale_swin_tiny_333", "proscale_swin_tiny_333"),
    ],
)
def test_names_and_shapes_are_published(config, expected):
    cfg = get_cfg()
    add_proscale_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{config}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    state = {name: list(value.shape) for name, value in build_model(cfg).state_dict().items()}
    published = json.loads((STATE_DICTS / f"{expected}.json").read_text())
    assert state == published
