"""The configurations of SegFormer train by its published recipe."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from proscale.config import setup_cfg
from proscale.engine.optimizer import build_optimizer
from proscale.engine.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return build_model(read("cityscapes/semantic/segformer_b0.yaml"))


def read(name):
    with torch.device("meta"):
        return setup_cfg(str(CONFIGS / name), ["MODEL.DEVICE", "meta"])


def test_learning_rate_and_decay_of_every_parameter(model):
    optimizer = build_optimizer(read("cityscapes/semantic/segformer_b0.yaml"), model)
    assert type(optimizer) is torch.optim.AdamW
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            in_head = name.startswith("sem_seg_head.")
            decays = "norm" not in name and ".dwconv." not in name
            assert group["lr"] == pytest.approx(6e-4 if in_head else 6e-5), name
            assert group["weight_decay"] == (0.01 if decays else 0.0), name


def test_schedule(model):
    """Linear warm-up from a millionth over 1,500 iterations, then linearly to zero at 160,000."""
    cfg = read("cityscapes/semantic/segformer_b0.yaml")
    scheduler = Trainer.build_lr_scheduler(cfg, build_optimizer(cfg, model))
    factors = {}
    for iteration in (0, 750, 1500, 80_000, 159_999):
        scheduler.last_epoch = iteration
        factors[iteration] = max(scheduler.get_lr()) / 6e-4
    left = {iteration: 1 - iteration / 160_000 for iteration in factors}
    assert factors == pytest.approx(
        {
            0: 1e-6,
            750: 0.5 * left[750],
            1500: left[1500],
            80_000: 0.5,
            159_999: left[159_999],
        },
        rel=1e-4,
    )


@pytest.mark.parametrize(
    ("name", "images", "crop", "short_edge", "windows"),
    [
        ("cityscapes/semantic/segformer_b5_bsm_hq.yaml", 8, 1024, 1024, True),
        ("ade20k/semantic/segformer_b0_n2d_2x2.yaml", 16, 512, 512, False),
        ("ade20k/semantic/segformer_b5_downsample.yaml", 16, 640, 640, False),
    ],
)
def test_sizes(name, images, crop, short_edge, windows):
    cfg = read(name)
    assert (images, 160_000) == (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER)
    assert tuple(cfg.INPUT.CROP.SIZE) == (crop, crop)
    assert crop == cfg.INPUT.SIZE_DIVISIBILITY
    assert (min(cfg.INPUT.MIN_SIZE_TRAIN), max(cfg.INPUT.MIN_SIZE_TRAIN)) == (
        short_edge // 2,
        2 * short_edge,
    )
    assert short_edge == cfg.INPUT.MIN_SIZE_TEST
    assert cfg.TEST.SLIDING_WINDOW.ENABLED is windows
