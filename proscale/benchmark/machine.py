"""The machine of a benchmark: its description, the speed of its matrix products, and the peak
memory of a call.

On CUDA PyTorch counts its allocations. On the CPU nothing does: the kernel's count of resident
pages is taken, in a process of its own and with an allocator that gives freed memory back.
"""

import ctypes
import gc
import multiprocessing
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from proscale.benchmark.latency import device_clock, measure

Result = TypeVar("Result")

# glibc: blocks of this size and more are mapped one by one, and unmapped when they are freed.
_MMAP_THRESHOLD = 1 << 16
_M_MMAP_THRESHOLD = -3  # mallopt's name for it in <malloc.h>


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Device, threads and versions, which a reader needs to compare numbers."""
    about: dict[str, str | int] = {}
    if device.type == "cuda":
        about["device"] = torch.cuda.get_device_name(device)
        # TF32 makes products faster and coarser.
        about["CUDA"] = str(torch.version.cuda)
        about["TF32 convolutions"] = "on" if torch.backends.cudnn.allow_tf32 else "off"
        precision = torch.get_float32_matmul_precision()
        about["TF32 matrix products"] = "off" if precision == "highest" else "on"
    else:
        # A line for each core, all with the same name; only Linux has the file.
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        about["device"] = next(names, "") or platform.processor() or platform.machine()
        about["instructions"] = torch.backends.cpu.get_cpu_capability()
        about["cores"] = os.cpu_count() or 0
    about["threads"] = torch.get_num_threads()
    about["torch"] = torch.__version__
    about["python"] = platform.python_version()
    return about


def print_header(
    device: torch.device, settings: Mapping[str, str | int]
) -> dict[str, dict[str, str | int]]:
    """Print machine and settings, a line each, at the head of a report; returns them for JSON."""
    header = {"machine": describe_machine(device), "settings": dict(settings)}
    for group in header.values():
        print("; ".join(f"{name}: {value}" for name, value in group.items()))
    print(flush=True)
    return header


def fp32_peak(device: torch.device, *, size: int = 2048, repeats: int = 10) -> float:
    """Floating-point operations per second of the fastest of several float32 products of two
    ``size`` x ``size`` matrices; a multiply-add is two operations."""
    # Large enough that the processor, not its memory, is the limit.
    left, right = torch.rand(2, size, size, device=device)
    product = torch.empty_like(left)
    times = measure(
        {"product": lambda: torch.mm(left, right, out=product)},
        repeats=repeats,
        warmup=2,
        clock=device_clock(device),
    )
    return 2 * size**3 / times["product"].best


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_allocated(function: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call allocates at most on a CUDA device beyond those allocated already."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    # Parameters and inputs, which are there before the call.
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_resident(function: Callable[[], object]) -> int:
    """Bytes of main memory that a call holds at most beyond those the process holds already.

    It changes how the process allocates: call it by :func:`in_fresh_process`. :class:`OSError`
    where this is not Linux, whose ``/proc`` and allocator the count needs.
    """
    if not can_measure_resident():
        raise OSError("peak memory on the CPU is read from Linux's /proc, which is not there")
    # Memory that is freed leaves the count at once.
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    # Once uncounted: code that is loaded and kernels that are compiled do not belong to a call.
    function()
    gc.collect()
    libc.malloc_trim(0)  # free memory among the smaller blocks
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM, the peak, back to VmRSS
    before = _status_bytes("VmRSS")
    function()
    return max(0, _status_bytes("VmHWM") - before)


def can_measure_resident() -> bool:
    """Whether :func:`peak_resident` works on this system."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")


def in_fresh_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a module-level function with picklable arguments in a new Python process."""
    # Spawned, not forked: it inherits no memory.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def _status_bytes(field: str) -> int:
    """Of a field of the kernel's description of this process, in kB."""
    (size,) = re.findall(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return 1024 * int(size)
