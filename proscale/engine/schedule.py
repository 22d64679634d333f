"""Learning-rate schedules: Detectron2's step and cosine, DeepLab's poly, each with warm-up.

All are Detectron2's own; this module is the one place that says which exist.
"""

import torch
from detectron2.config import CfgNode
from detectron2.projects import deeplab
from torch.optim.lr_scheduler import LRScheduler

_SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR")


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the schedule that ``SOLVER.LR_SCHEDULER_NAME`` names; it is stepped every iteration.

    WarmupMultiStepLR multiplies by ``GAMMA`` at each of ``STEPS``, WarmupCosineLR follows half a
    cosine to 0, WarmupPolyLR is (1 - iteration / ``MAX_ITER``) ** ``POLY_LR_POWER``, not less than
    ``POLY_LR_CONSTANT_ENDING``. The first ``WARMUP_ITERS`` warm up by ``WARMUP_METHOD``.

    Raises:
        ValueError: the schedule is unknown.
    """
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    if name not in _SCHEDULES:
        raise ValueError(f"SOLVER.LR_SCHEDULER_NAME is {name!r}: expected {', '.join(_SCHEDULES)}")
    # Passes the names that are not DeepLab's on to Detectron2's solver.
    return deeplab.build_lr_scheduler(cfg, optimizer)
