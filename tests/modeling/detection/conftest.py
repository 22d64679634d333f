"""Small detectors and samples."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

CLASSES = 5


@pytest.fixture
def detector_cfg(cfg):
    """A DINO that is small enough for tests."""
    cfg.MODEL.META_ARCHITECTURE = "Detector"
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.SWIN.EMBED_DIM = 16
    cfg.MODEL.SWIN.DEPTHS = [1, 1, 1, 1]
    cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 4, 4]
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.0
    cfg.MODEL.SWIN.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 32
    cfg.MODEL.MASK_FORMER.NHEADS = 4
    cfg.MODEL.LITE_DETR.NUM_HIGH_LEVELS = 3
    node = cfg.MODEL.DETECTOR
    node.ENC_LAYERS, node.DEC_LAYERS, node.PROSCALE_NUM_LAYERS = 1, 2, [0, 1, 1, 1]
    node.DIM_FEEDFORWARD, node.NUM_QUERIES, node.DN_NUMBER = 48, 20, 12
    return cfg


@pytest.fixture
def make_sample():
    """`make_sample(height, width, count)`: a training sample with random boxes within the image."""
    generator = torch.Generator().manual_seed(0)

    def make(height, width, count):
        corners = torch.rand(count, 4, generator=generator) / 2 + torch.tensor([0, 0, 0.5, 0.5])
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(corners * torch.tensor([width, height, width, height]))
        instances.gt_classes = torch.randint(CLASSES, (count,), generator=generator)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        return {
            "image": image,
            "instances": instances,
            "height": 2 * height,
            "width": 2 * width,
        }

    return make
