"""The machine's description and its peak."""

import torch

from proscale.benchmark.machine import describe_machine, fp32_peak

CPU = torch.device("cpu")


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
