"""The machine's description, its peak, and peak memory of calls whose peak is known."""

import pytest
import torch
from torch import nn

from proscale.benchmark.machine import (
    can_measure_resident,
    describe_machine,
    fp32_peak,
    in_fresh_process,
    model_bytes,
    peak_allocated,
    peak_resident,
)

CPU = torch.device("cpu")
MIB = 2**20


def test_description_names_device_threads_and_versions():
    about = describe_machine(CPU)
    assert about["device"]
    assert about["threads"] == torch.get_num_threads()
    assert about["torch"] == torch.__version__


def test_peak_counts_two_operations_per_multiply_add(monkeypatch):
    # Every reading of the clock is a second after the last one.
    seconds = iter(range(100))
    monkeypatch.setattr(
        "proscale.benchmark.machine.device_clock", lambda device: lambda: next(seconds)
    )
    assert fp32_peak(CPU, size=8, repeats=2) == 2 * 8**3


def hold_and_free() -> None:
    """48 MiB at most, of which 32 were freed before, and nothing afterwards."""
    temporary = torch.ones(32 * MIB // 4)
    del temporary
    kept = torch.ones(16 * MIB // 4)
    torch.cat((kept, kept))


def measure_resident() -> tuple[int, int]:
    return peak_resident(hold_and_free), peak_resident(lambda: None)


def test_model_bytes_counts_parameters_and_buffers():
    assert model_bytes(nn.BatchNorm1d(10)) == 4 * 10 * 4 + 8


@pytest.mark.skipif(not can_measure_resident(), reason="needs Linux's /proc and glibc")
def test_resident_peak_is_what_a_call_holds_at_once():
    peak, nothing = in_fresh_process(measure_resident)
    assert peak == pytest.approx(48 * MIB, rel=0.05)
    assert nothing < MIB


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_allocated_peak_is_above_what_was_held():
    device = torch.device("cuda")
    held = torch.ones(8 * MIB // 4, device=device)
    peak = peak_allocated(lambda: torch.cat((held, held)), device)
    assert peak == 16 * MIB


def test_resident_memory_needs_linux(monkeypatch):
    monkeypatch.setattr("sys.platform", "plan9")
    with pytest.raises(OSError, match="Linux"):
        peak_resident(hold_and_free)
