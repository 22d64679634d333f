"""Fixtures of the tests of exported files."""

import pytest


@pytest.fixture
def tiny_cfg(small_cfg):
    """A PRO-SCALE model that is exported in seconds."""
    small_cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    small_cfg.MODEL.RESNETS.DEPTH = 18
    small_cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    small_cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    small_cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [1, 0, 0]
    small_cfg.MODEL.MASK_FORMER.DEC_LAYERS = 2
    return small_cfg
