"""Multi-scale deformable attention on a GPU, by Triton: nothing to compile at installation.

The kernels are in :mod:`proscale.ops.triton_kernels`, which only a call imports, so that this
module can be imported where Triton is not installed. Tensors have the shapes that
:func:`proscale.ops.deformable_attention` gives, on one GPU; fp64, fp32, fp16 or bf16, and not
necessarily all the same. Sums are made in fp32, or in fp64 if any tensor is fp64.
"""

import os
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_WARPS = 4
# Elements of a program's (queries, points, channels): 8 per thread, which is what one (half
# precision) or two (fp32) 16-byte loads bring. Loops over levels and corners are unrolled, so that
# a thread of the forward kernel has up to 24 of them in flight at 3 levels. For sm_90 and heads of
# 32 the compiler takes 94 registers (bf16: 40), and 80 (96) in the backward kernel; with a tile of
# 2048, 210 (71) and 158 (180), which leaves an SM hardly any warps to hide latency with. The
# key-aware kernels take 78 (54) and 145 (143).
_TILE = 1024


def is_available() -> bool:
    """Whether kernels can run: Triton and a GPU, or its interpreter, for tests on CPU tensors, if
    ``TRITON_INTERPRET=1`` was set before Triton was imported."""
    if find_spec("triton") is None:
        return False
    return torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


def forward(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The output of :func:`proscale.ops.deformable_attention`, unknown to autograd."""
    batch, _, heads, width = value.shape
    output = value.new_empty((batch, sampling_locations.shape[1], heads * width))
    if output.numel() > 0:
        from proscale.ops.triton_kernels import forward_kernel

        dtype = _accumulator(value, sampling_locations, attention_weights)
        arguments = (value, spatial_shapes, sampling_locations, attention_weights)
        _launch(forward_kernel, (output,), *arguments, dtype=dtype)
    return output


def key_aware_forward(
    query: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
) -> Tensor:
    """The output of :func:`proscale.ops.key_aware_deformable_attention`, unknown to autograd."""
    batch, queries, heads, width = query.shape
    output = value.new_empty((batch, queries, heads * width))
    if output.numel() > 0:
        from proscale.ops.triton_kernels import key_aware_forward_kernel

        dtype = _accumulator(query, value, sampling_locations)
        tensors = (output, query.contiguous())
        arguments = (value, spatial_shapes, sampling_locations)
        _launch(key_aware_forward_kernel, tensors, *arguments, dtype=dtype)
    return output


def backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each in its dtype, by that of the output.

    Raises:
        RuntimeError: under ``torch.use_deterministic_algorithms(True)``; with ``warn_only``, a
            warning instead.
    """
    _refuse_deterministic()
    dtype = _accumulator(value, sampling_locations, attention_weights)
    grad_value = torch.zeros(value.shape, dtype=dtype, device=value.device)
    grad_locations = torch.empty_like(sampling_locations, memory_format=torch.contiguous_format)
    grad_weights = torch.empty_like(attention_weights, memory_format=torch.contiguous_format)
    if grad_output.numel() > 0:
        from proscale.ops.triton_kernels import backward_kernel

        tensors = (grad_value, grad_locations, grad_weights, grad_output.contiguous())
        arguments = (value, spatial_shapes, sampling_locations, attention_weights)
        _launch(backward_kernel, tensors, *arguments, dtype=dtype)
    return grad_value.to(value.dtype), grad_locations, grad_weights


def key_aware_backward(
    grad_output: Tensor,
    query: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, value and locations, each in its dtype; see :func:`backward`."""
    _refuse_deterministic()
    dtype = _accumulator(query, value, sampling_locations)
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    grad_value = torch.zeros(value.shape, dtype=dtype, device=value.device)
    grad_locations = torch.empty_like(sampling_locations, memory_format=torch.contiguous_format)
    if grad_output.numel() > 0:
        from proscale.ops.triton_kernels import key_aware_backward_kernel

        tensors = (grad_query, grad_value, grad_locations, grad_output.contiguous())
        arguments = (value, spatial_shapes, sampling_locations)
        _launch(key_aware_backward_kernel, (*tensors, query.contiguous()), *arguments, dtype=dtype)
    return grad_query, grad_value.to(value.dtype), grad_locations


def _refuse_deterministic() -> None:
    # The gradient of the value is summed by atomics, whose order, and so the last bits of the sums,
    # changes from run to run.
    if torch.are_deterministic_algorithms_enabled():
        message = (
            "the backward of deformable attention's Triton backend sums in no fixed order, but "
            "torch.use_deterministic_algorithms(True) is in force"
        )
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=3)


def _launch(
    kernel: Any,
    tensors: tuple[Tensor, ...],
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    *places: Tensor,
    dtype: torch.dtype,
) -> None:
    """Run ``kernel`` on ``tensors``, the values, and locations and what else has their points."""
    import triton
    import triton.language as tl

    batch, tokens, heads, width = value.shape
    _, queries, _, levels, points, _ = places[0].shape
    # Lengths of a tile are powers of two; what is beyond the tensors is masked.
    block_p, block_d = triton.next_power_of_2(points), triton.next_power_of_2(width)
    block_n = max(_TILE // (block_p * block_d), 1)
    # One program for each head and block of queries of each image.
    grid = (batch * heads * triton.cdiv(queries, block_n),)
    # Triton launches on the current device, whichever holds the tensors.
    with torch.cuda.device_of(value):
        kernel[grid](
            *tensors,
            value.contiguous(),
            # Sizes of the maps as data, not as constants of the kernel.
            _levels(tuple(spatial_shapes), value.device),
            *(tensor.contiguous() for tensor in places),
            tokens,
            queries,
            HEADS=heads,
            DIM=width,
            LEVELS=levels,
            POINTS=points,
            ACCUMULATE=tl.float64 if dtype == torch.float64 else tl.float32,
            BLOCK_N=block_n,
            BLOCK_P=block_p,
            BLOCK_D=block_d,
            num_warps=_WARPS,
        )


def _accumulator(*tensors: Tensor) -> torch.dtype:
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


# Kept for good, some bytes for each size of image ever seen: a copy to the device waits for it, and
# freeing one could hand its memory to another stream while a kernel still reads it.
@cache
def _levels(spatial_shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """``(L, 3)`` int32: height, width and first token of each level."""
    rows, start = [], 0
    for height, width in spatial_shapes:
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)
