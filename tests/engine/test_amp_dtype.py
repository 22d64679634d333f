import pytest
import torch

from proscale.config import setup_cfg
from proscale.engine.train_loop import resolve_amp_dtype


def make_cfg(dtype, device, enabled=True):
    cfg = setup_cfg("", ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", enabled])
    cfg.defrost()
    cfg.SOLVER.AMP.DTYPE = dtype
    cfg.MODEL.DEVICE = device  # set here, so that machines without CUDA can run this
    return cfg


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        ("auto", "cuda", torch.float16),
        ("auto", "cuda:1", torch.float16),
        ("auto", "cpu", torch.bfloat16),
        ("bfloat16", "cuda", torch.bfloat16),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float16", "cuda", torch.float16),
    ],
)
def test_dtype(dtype, device, expected):
    assert resolve_amp_dtype(make_cfg(dtype, device)) is expected
    assert resolve_amp_dtype(make_cfg(dtype, device, enabled=False)) is None
