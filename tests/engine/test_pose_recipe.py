"""The configurations of pose estimation train by SegFormer++'s released recipe."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from proscale.config import setup_cfg
from proscale.engine.optimizer import build_optimizer
from proscale.engine.trainer import Trainer

CONFIG = Path(__file__).parents[2] / "configs" / "coco" / "keypoints" / "segformer_b0.yaml"


@pytest.fixture(scope="module")
def optimizer():
    with torch.device("meta"):
        cfg = setup_cfg(str(CONFIG), ["MODEL.DEVICE", "meta"])
        return build_optimizer(cfg, build_model(cfg))


def test_all_parameters_decay_at_one_rate(optimizer):
    """Norms, biases and position convolutions, too."""
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert group["lr"] == 5e-4
    assert group["weight_decay"] == 0.01
    assert group["betas"] == (0.9, 0.999)
    parts = ("norm1.bias", "dwconv.weight", "fuse.norm.weight", "predictor.bias")
    assert all(any(part in name for name in group["param_names"]) for part in parts)


@pytest.mark.parametrize(
    ("steps", "iteration", "factor"),
    [
        ("()", 0, 0.001),
        ("()", 250, 0.5005),
        ("()", 500, 1.0),
        ("()", 1966295, 1.0),
        # What the released files name, and their schedule does not reach.
        ("(1591764, 1872663)", 1590000, 1.0),
        ("(1591764, 1872663)", 1600000, 0.1),
        ("(1591764, 1872663)", 1900000, 0.01),
    ],
)
def test_rate(steps, iteration, factor):
    cfg = setup_cfg(str(CONFIG), ["MODEL.DEVICE", "cpu", "SOLVER.STEPS", steps])
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], cfg.SOLVER.BASE_LR)
    schedule = Trainer.build_lr_scheduler(cfg, optimizer)
    schedule.last_epoch = iteration
    (rate,) = schedule.get_lr()
    assert rate == pytest.approx(5e-4 * factor, rel=1e-3)
