"""Small detectors and samples."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

CLASSES = 5


@pytest.fixture
def detector_cfg(small_detector_cfg):
    return small_detector_cfg


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
