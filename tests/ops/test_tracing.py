"""What is kept between calls, and when not."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from proscale.ops.fused import should_tile
from proscale.ops.tracing import cached_table, is_tracing, reference_operators, use_reference


def test_results_are_kept_by_arguments():
    ramp = cached_table(lambda length, *, device: torch.arange(length, device=device))
    assert ramp(3, device="cpu") is ramp(3, device="cpu")
    assert ramp(3, device="cpu") is not ramp(4, device="cpu")
    assert ramp(3, device="meta").device.type == "meta"


def test_fake_tensors_neither_see_nor_leave_kept_ones():
    ramp = cached_table(lambda length: torch.arange(length))
    with FakeTensorMode():
        assert isinstance(ramp(3), FakeTensor)
    assert ramp(3).tolist() == [0, 1, 2]
    with FakeTensorMode():
        assert isinstance(ramp(3), FakeTensor)


def test_results_of_inference_take_part_in_training():
    ramp = cached_table(lambda length: torch.arange(length).float())
    with torch.inference_mode():
        ramp(3)
    (ramp(3) * torch.ones(3, requires_grad=True)).sum().backward()


def test_blocks_only_without_gradients():
    assert not should_tile(torch.zeros(1))
    with torch.no_grad():
        assert should_tile(torch.zeros(1))
        assert not should_tile(torch.zeros(1, device="meta"))


def test_reference_operators_run_within_the_context_only():
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="left"), reference_operators():
            assert use_reference()
            assert not is_tracing()
            assert not should_tile(torch.zeros(1))
            raise RuntimeError("left")
        assert not use_reference()
        assert should_tile(torch.zeros(1))


def test_reference_operators_run_in_their_thread_only():
    with reference_operators(), ThreadPoolExecutor(1) as pool:
        assert use_reference()
        assert not pool.submit(use_reference).result()
