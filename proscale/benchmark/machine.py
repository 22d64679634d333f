"""The machine that figures were measured on, and how fast its matrix products are."""

import os
import platform
from pathlib import Path

import torch

from proscale.benchmark.latency import device_clock, measure


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """What a reader has to know to compare figures: device, threads, versions."""
    about: dict[str, str | int] = {"device": _device_name(device)}
    if device.type == "cuda":
        about["CUDA"] = torch.version.cuda
        about["TF32 convolutions"] = "on" if torch.backends.cudnn.allow_tf32 else "off"
        about["TF32 matrix products"] = (
            "off" if torch.get_float32_matmul_precision() == "highest" else "on"
        )
    else:
        about["instructions"] = torch.backends.cpu.get_cpu_capability()
        about["cores"] = os.cpu_count() or 0
    about["threads"] = torch.get_num_threads()
    about["torch"] = torch.__version__
    about["python"] = platform.python_version()
    return about


def fp32_peak(device: torch.device, *, size: int = 2048, repeats: int = 10) -> float:
    """Floating-point operations per second of the fastest of several float32 products of two
    ``size`` x ``size`` matrices; a multiply-add is two operations."""
    left, right = torch.rand(2, size, size, device=device)
    product = torch.empty_like(left)
    times = measure(
        {"product": lambda: torch.mm(left, right, out=product)},
        repeats=repeats,
        warmup=2,
        clock=device_clock(device),
    )
    return 2 * size**3 / times["product"].best


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # platform.processor() is empty or an architecture on Linux.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
