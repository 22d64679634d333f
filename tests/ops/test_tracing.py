"""What is kept between calls, and when not."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from proscale.ops.tracing import as_recorded, is_recorded, once_per_arguments, should_tile


def test_results_are_kept_by_arguments():
    ramp = once_per_arguments(lambda length, *, device: torch.arange(length, device=device))
    assert ramp(3, device="cpu") is ramp(3, device="cpu")
    assert ramp(3, device="cpu") is not ramp(4, device="cpu")
    assert ramp(3, device="meta").device.type == "meta"


def test_fake_tensors_neither_see_nor_leave_kept_ones():
    ramp = once_per_arguments(lambda length: torch.arange(length))
    with FakeTensorMode():
        assert isinstance(ramp(3), FakeTensor)
    assert ramp(3).tolist() == [0, 1, 2]
    with FakeTensorMode():
        assert isinstance(ramp(3), FakeTensor)


def test_results_of_inference_take_part_in_training():
    ramp = once_per_arguments(lambda length: torch.arange(length).float())
    with torch.inference_mode():
        ramp(3)
    (ramp(3) * torch.ones(3, requires_grad=True)).sum().backward()


def test_blocks_only_without_gradients():
    assert not should_tile(torch.zeros(1))
    with torch.no_grad():
        assert should_tile(torch.zeros(1))
        assert not should_tile(torch.zeros(1, device="meta"))


def test_operators_are_as_recorded_within_the_context_only():
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="left"), as_recorded():
            assert is_recorded()
            assert not should_tile(torch.zeros(1))
            raise RuntimeError("left")
        assert not is_recorded()
        assert should_tile(torch.zeros(1))
