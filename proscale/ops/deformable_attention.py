"""Multi-scale deformable attention (Deformable DETR, §4.1): one operator over several backends.

``proscale::deformable_attention`` is registered with PyTorch, so that autograd, fake tensors
(``torch.compile``, ``torch.export``) and FLOP counters know it.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from proscale.ops import embedding_bag, triton_backend

_BACKENDS: dict[str, ModuleType] = {"embedding_bag": embedding_bag, "triton": triton_backend}
REFERENCE = "reference"
# What a backend of None means within using_backend().
_preferred: ContextVar[str | None] = ContextVar("proscale_deformable_backend", default=None)

logger = logging.getLogger(__name__)


@cache
def _log_once(level: int, message: str, *args: str) -> None:
    logger.log(level, message, *args)


def available_backends() -> tuple[str, ...]:
    """Names that ``backend`` of :func:`deformable_attention` accepts on this machine.

    ``reference`` runs everywhere, ``embedding_bag`` takes tensors on the CPU, ``triton`` on CUDA.
    """
    fast = ("embedding_bag", "triton") if triton_backend.is_available() else ("embedding_bag",)
    return (REFERENCE, *fast)


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Weighted sum of values sampled bilinearly around each query, over several levels.

    A location in ``[0, 1]²`` covers a level's whole map, cells' centres lie at half-integers, and
    outside the map values are zero. Under autocast values are taken in its number format;
    locations and weights keep theirs, and sums are made in float32.

    Args:
        value: ``(B, S, M, D)``, the levels' tokens one after another, S = ΣH·W.
        spatial_shapes: ``(H, W)`` of each of the L levels, as Python ints.
        sampling_locations: ``(B, N, M, L, P, 2)`` as (x, y).
        attention_weights: ``(B, N, M, L, P)``.
        backend: one of :func:`available_backends`. None takes ``embedding_bag`` on the CPU and
            ``triton`` on CUDA; where neither can be used, ``reference``, with a warning.

    Returns:
        ``(B, N, M·D)`` in the dtype of ``value``; differentiable with respect to all tensors.

    Raises:
        ValueError: if shapes do not fit together, or the backend is unknown.
    """
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    device = value.device.type
    if backend is None:
        backend = _preferred.get()
        if backend is None and device in ("cpu", "meta"):
            backend = "embedding_bag"
        elif backend is None:
            # Triton compiles at first use; without it there is no fast operator on CUDA.
            has_triton = device == "cuda" and triton_backend.is_available()
            backend = "triton" if has_triton else REFERENCE
            if not has_triton and not torch.compiler.is_compiling():
                _log_once(
                    logging.WARNING,
                    "deformable attention has no fast backend for the device %s here (triton is "
                    "needed on CUDA): computing it with %s, which is slow",
                    device,
                    REFERENCE,
                )
    elif backend not in available_backends():
        raise ValueError(f"backend is {backend!r}: expected {', '.join(available_backends())}")
    # Values follow autocast, locations do not: half precision would move a place in the map.
    if torch.is_autocast_enabled(device) and value.dtype != torch.float64:
        value = value.to(torch.get_autocast_dtype(device))
    # Autograd differentiates the reference itself; the others bring their own backward.
    if backend == REFERENCE:
        with torch.autocast(device, enabled=False):
            return reference_deformable_attention(
                value, spatial_shapes, sampling_locations, attention_weights
            )
    # torch.jit.trace, by which fvcore counts, makes tensors of sizes.
    sizes = [int(n) if isinstance(n, Tensor) else n for shape in spatial_shapes for n in shape]
    return _operator(value, sizes, sampling_locations, attention_weights, backend)


@contextmanager
def using_backend(name: str) -> Iterator[None]:
    """Within it, and in this thread, :func:`deformable_attention` takes this backend where none is
    named, so that whole models can be compared. An unknown one is a ``ValueError``."""
    if name not in available_backends():
        raise ValueError(f"backend is {name!r}: expected {', '.join(available_backends())}")
    token = _preferred.set(name)
    try:
        yield
    finally:
        _preferred.reset(token)


def reference_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The backend ``reference``, by which the others are tested: a ``grid_sample`` per level."""
    batch, _, heads, width = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    # grid_sample's coordinates run from -1 to 1, a cell's centre at half-integers.
    grids = 2 * sampling_locations.to(dtype) - 1
    output = value.new_zeros((batch * heads, width, queries), dtype=dtype)
    levels = value.to(dtype).split([height * length for height, length in spatial_shapes], dim=1)
    for index, ((height, length), tokens) in enumerate(zip(spatial_shapes, levels, strict=True)):
        # Heads are independent: (B, H·W, M, D) to (B·M, D, H, W), a map for each.
        maps = tokens.permute(0, 2, 3, 1).reshape(batch * heads, width, height, length)
        grid = grids[:, :, :, index].transpose(1, 2).reshape(batch * heads, queries, points, 2)
        sampled = F.grid_sample(  # (B·M, D, N, P)
            maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        # Σ over the level's points of A_mlqk · x_l(φ_l(p) + Δp_mlqk) (equation 3).
        weights = attention_weights[:, :, :, index].transpose(1, 2)
        weights = weights.to(dtype).reshape(batch * heads, 1, queries, points)
        output = output + (sampled * weights).sum(-1)
    output = output.reshape(batch, heads * width, queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


@torch.library.custom_op("proscale::deformable_attention", mutates_args=())
def _operator(
    value: Tensor,
    sizes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str,
) -> Tensor:
    device = value.device.type
    _log_once(logging.INFO, "deformable attention on %s: backend %s", device, backend)
    with torch.autocast(device, enabled=False):
        return _BACKENDS[backend].forward(
            value, _pairs(sizes), sampling_locations, attention_weights
        )


@torch.library.custom_op("proscale::deformable_attention_backward", mutates_args=())
def _backward_operator(
    grad_output: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(value.device.type, enabled=False):
        return _BACKENDS[backend].backward(
            grad_output, value, _pairs(sizes), sampling_locations, attention_weights
        )


# Shapes alone, for torch.compile, torch.export and fake tensors.
@_operator.register_fake
def _(value, sizes, sampling_locations, attention_weights, backend):
    batch, _, heads, width = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * width)


@_backward_operator.register_fake
def _(grad_output, value, sizes, sampling_locations, attention_weights, backend):
    return tuple(torch.empty_like(t) for t in (value, sampling_locations, attention_weights))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, sizes, sampling_locations, attention_weights, backend = inputs
    ctx.save_for_backward(value, sampling_locations, attention_weights)
    # Tensors through the context, so that autograd frees them; the rest as attributes.
    ctx.sizes, ctx.backend = sizes, backend


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
    value, sampling_locations, attention_weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = _backward_operator(
        grad_output, value, ctx.sizes, sampling_locations, attention_weights, ctx.backend
    )
    # Sizes and backend have no gradient.
    return grad_value, None, grad_locations, grad_weights, None


_operator.register_autograd(_backward, setup_context=_setup_context)


def multiply_adds(value_shape: Sequence[int], locations_shape: Sequence[int]) -> int:
    """Cost of the operator by the shapes of its value and locations."""
    # Four for each sampled number, the cells around it. The weighted sum over points is not
    # counted, as elementwise products never are.
    batch, queries, heads, levels, points, _ = locations_shape
    return 4 * batch * queries * heads * levels * points * value_shape[3]


@register_flop_formula(torch.ops.proscale.deformable_attention)
def _flops(
    value_shape: Sequence[int], sizes: Any, locations_shape: Sequence[int], *_: Any, **__: Any
) -> int:
    # PyTorch's counter counts a multiply-add as two.
    return 2 * multiply_adds(value_shape, locations_shape)


def _pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(sizes[::2], sizes[1::2], strict=True))


def _check_shapes(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    if value.dim() != 4:
        raise ValueError(f"value has shape {tuple(value.shape)}: expected (B, S, M, D)")
    batch, tokens, heads, _ = value.shape
    levels = len(spatial_shapes)
    expected = sum(height * width for height, width in spatial_shapes)
    if tokens != expected:
        raise ValueError(
            f"value holds {tokens} tokens, but spatial_shapes {list(spatial_shapes)} make "
            f"{expected}"
        )
    shape = tuple(sampling_locations.shape)
    if len(shape) != 6 or (*shape[:1], *shape[2:4], shape[5]) != (batch, heads, levels, 2):
        raise ValueError(
            f"sampling_locations has shape {shape}: expected ({batch}, N, {heads}, {levels}, P, 2)"
        )
    if tuple(attention_weights.shape) != shape[:-1]:
        raise ValueError(
            f"attention_weights has shape {tuple(attention_weights.shape)}: expected {shape[:-1]}"
        )
