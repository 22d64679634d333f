"""Which number format the training step computes in."""

import torch
from detectron2.config import CfgNode

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The format of automatic mixed precision on ``MODEL.DEVICE``; None if it is off.

    ``SOLVER.AMP.DTYPE`` auto is float16 on CUDA, as published, and bfloat16 on the CPU.

    Raises:
        ValueError: ``SOLVER.AMP.DTYPE`` is unknown, or float16 on the CPU.
    """
    amp = cfg.SOLVER.AMP
    if not amp.ENABLED:
        return None
    on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    if amp.DTYPE == "auto":
        return torch.bfloat16 if on_cpu else torch.float16
    if amp.DTYPE not in _DTYPES:
        raise ValueError(f"SOLVER.AMP.DTYPE is {amp.DTYPE!r}: expected auto, {', '.join(_DTYPES)}")
    if on_cpu and amp.DTYPE == "float16":
        raise ValueError(
            f"SOLVER.AMP.DTYPE is float16 and MODEL.DEVICE {cfg.MODEL.DEVICE}, where float16 is "
            "slow: expected auto, bfloat16"
        )
    return _DTYPES[amp.DTYPE]
