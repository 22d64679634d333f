import math

import pytest
import torch

from proscale.config import setup_cfg
from proscale.engine.trainer import Trainer

BASE_LRS = (1.0, 0.1)


def learning_rates(name: str, **solver) -> list[tuple[float, ...]]:
    """Learning rates of both groups at iterations 0 … MAX_ITER."""
    settings = {"LR_SCHEDULER_NAME": name, "MAX_ITER": 100, "STEPS": (60, 80)} | solver
    overrides = [item for key, value in settings.items() for item in (f"SOLVER.{key}", value)]
    cfg = setup_cfg("", ["MODEL.DEVICE", "cpu", *overrides])
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in BASE_LRS]
    optimizer = torch.optim.SGD(groups)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    rates = [tuple(group["lr"] for group in optimizer.param_groups)]
    for _ in range(cfg.SOLVER.MAX_ITER):
        optimizer.step()
        scheduler.step()
        rates.append(tuple(group["lr"] for group in optimizer.param_groups))
    return rates


def test_steps():
    rates = learning_rates("WarmupMultiStepLR", WARMUP_ITERS=0, GAMMA=0.1)
    for iteration, factor in {0: 1, 59: 1, 60: 0.1, 79: 0.1, 80: 0.01, 99: 0.01}.items():
        assert rates[iteration] == pytest.approx([lr * factor for lr in BASE_LRS])


def test_linear_warm_up():
    rates = learning_rates("WarmupMultiStepLR", WARMUP_ITERS=10, WARMUP_FACTOR=0.2)
    for iteration, factor in {0: 0.2, 5: 0.6, 9: 0.92, 10: 1, 11: 1}.items():
        assert rates[iteration] == pytest.approx([lr * factor for lr in BASE_LRS])


def test_constant_warm_up():
    rates = learning_rates(
        "WarmupMultiStepLR", WARMUP_ITERS=10, WARMUP_FACTOR=0.2, WARMUP_METHOD="constant"
    )
    assert [rates[i][0] for i in (0, 9, 10)] == pytest.approx([0.2, 0.2, 1.0])


def test_cosine():
    rates = learning_rates("WarmupCosineLR", WARMUP_ITERS=0)
    for iteration in (0, 25, 50, 99):
        factor = (1 + math.cos(math.pi * iteration / 100)) / 2
        assert rates[iteration] == pytest.approx([lr * factor for lr in BASE_LRS])


def test_poly():
    rates = learning_rates("WarmupPolyLR", WARMUP_ITERS=10, WARMUP_FACTOR=0.2, POLY_LR_POWER=0.9)
    for iteration, warm_up in {0: 0.2, 5: 0.6, 10: 1, 50: 1, 99: 1, 100: 1}.items():
        factor = warm_up * (1 - iteration / 100) ** 0.9
        assert rates[iteration] == pytest.approx([lr * factor for lr in BASE_LRS])


def test_poly_with_constant_ending():
    rates = learning_rates("WarmupPolyLR", WARMUP_ITERS=0, POLY_LR_CONSTANT_ENDING=0.25)
    assert rates[50][0] == pytest.approx(0.5**0.9)
    assert [rates[i][0] for i in (90, 99, 100)] == pytest.approx([0.25] * 3)
