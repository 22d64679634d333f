"""Peak memory of a call: what it holds at most beyond what was held before.

On CUDA PyTorch counts its allocations. On the CPU nothing does, so the kernel's count of resident
pages is taken, in a process of its own and with an allocator that gives freed memory back.
"""

import ctypes
import gc
import multiprocessing
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

Result = TypeVar("Result")

# glibc: blocks of this size and more are mapped one by one, and unmapped when they are freed.
_MMAP_THRESHOLD = 1 << 16
_M_MMAP_THRESHOLD = -3  # mallopt's name for it in <malloc.h>


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_allocated(function: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call allocates at most on a CUDA device beyond what is allocated already."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_resident(function: Callable[[], object]) -> int:
    """Bytes of main memory that a call holds at most beyond what the process holds already.

    The function is called twice, and the second call counts: what is set up once, such as code that
    is loaded and kernels that are compiled, does not. It changes how the process allocates, so it
    belongs in a fresh one: see :func:`in_fresh_process`.

    Raises:
        OSError: this is not Linux, whose ``/proc`` and allocator the count needs.
    """
    if not can_measure_resident():
        raise OSError("peak memory on the CPU is read from Linux's /proc, which is not there")
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    function()
    gc.collect()
    libc.malloc_trim(0)  # what is free among the smaller blocks
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM, the peak, back to VmRSS
    before = _status_bytes("VmRSS")
    function()
    return max(0, _status_bytes("VmHWM") - before)


def can_measure_resident() -> bool:
    """Whether :func:`peak_resident` works on this system."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")


def in_fresh_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a module-level function with picklable arguments in a new Python process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)[1])
