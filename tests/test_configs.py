"""Every configuration file builds a model."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("base"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_builds(file, cfg):
    cfg.merge_from_file(str(file))
    # Shapes without memory: the largest models hold a gigabyte.
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e6
    if cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME == "PROSCALE":
        encoder = model.sem_seg_head.pixel_decoder.transformer.encoder
        assert encoder.num_layers == cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS
