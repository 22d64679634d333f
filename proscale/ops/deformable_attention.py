"""Multi-scale deformable attention (Deformable DETR, §4.1) and its key-aware form (Lite DETR): two
operators over several backends.

``proscale::deformable_attention`` and ``proscale::key_aware_deformable_attention`` are registered
with PyTorch, so that autograd, fake tensors (``torch.compile``, ``torch.export``) and FLOP counters
know them.
"""

import logging
import math
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
    _check_shapes(value, spatial_shapes, sampling_locations)
    shape = tuple(sampling_locations.shape[:-1])
    if tuple(attention_weights.shape) != shape:
        raise ValueError(
            f"attention_weights has shape {tuple(attention_weights.shape)}: expected {shape}"
        )
    backend, device = _choose_backend(backend, value.device.type), value.device.type
    value = _follow_autocast(value)
    # Autograd differentiates the reference itself; the others bring their own backward.
    if backend == REFERENCE:
        with torch.autocast(device, enabled=False):
            return reference_deformable_attention(
                value, spatial_shapes, sampling_locations, attention_weights
            )
    sizes = _flat_sizes(spatial_shapes)
    return _operator(value, sizes, sampling_locations, attention_weights, backend)


def key_aware_deformable_attention(
    query: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Deformable attention whose weights come from the sampled places (Lite DETR).

    The values that a head samples are its keys as well: the weights are the softmax, over the L·P
    places together, of their products with the query, divided by √D. See
    :func:`deformable_attention` for places, number formats, backends and errors.

    Args:
        query: ``(B, N, M, D)``.
        value: ``(B, S, M, D)``, the levels' tokens one after another, S = ΣH·W.
        spatial_shapes: ``(H, W)`` of each of the L levels, as Python ints.
        sampling_locations: ``(B, N, M, L, P, 2)`` as (x, y).
        backend: as there.

    Returns:
        ``(B, N, M·D)`` in the dtype of ``value``; differentiable with respect to all tensors.
    """
    _check_shapes(value, spatial_shapes, sampling_locations)
    shape = (*sampling_locations.shape[:3], value.shape[3])
    if tuple(query.shape) != shape:
        raise ValueError(f"query has shape {tuple(query.shape)}: expected {shape}")
    backend, device = _choose_backend(backend, value.device.type), value.device.type
    query, value = _follow_autocast(query), _follow_autocast(value)
    if backend == REFERENCE:
        with torch.autocast(device, enabled=False):
            return reference_key_aware_attention(query, value, spatial_shapes, sampling_locations)
    sizes = _flat_sizes(spatial_shapes)
    return _key_aware_operator(query, value, sizes, sampling_locations, backend)


def _choose_backend(backend: str | None, device: str) -> str:
    """The backend that a caller named or, for None, the fastest one for a type of device."""
    if backend is not None:
        if backend not in available_backends():
            raise ValueError(f"backend is {backend!r}: expected {', '.join(available_backends())}")
        return backend
    preferred = _preferred.get()
    if preferred is not None:
        return preferred
    if device in ("cpu", "meta"):
        return "embedding_bag"
    # Triton compiles at first use; without it there is no fast operator on CUDA.
    if device == "cuda" and triton_backend.is_available():
        return "triton"
    if not torch.compiler.is_compiling():
        _log_once(
            logging.WARNING,
            "deformable attention has no fast backend for the device %s here (triton is "
            "needed on CUDA): computing it with %s, which is slow",
            device,
            REFERENCE,
        )
    return REFERENCE


def _follow_autocast(tensor: Tensor) -> Tensor:
    # Values follow autocast, locations do not: half precision would move a place in the map.
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.dtype != torch.float64:
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def _flat_sizes(spatial_shapes: Sequence[tuple[int, int]]) -> list[int]:
    # torch.jit.trace, by which fvcore counts, makes tensors of sizes.
    return [int(n) if isinstance(n, Tensor) else n for shape in spatial_shapes for n in shape]


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
    output = value.new_zeros((batch * heads, width, queries), dtype=dtype)
    samples = _sample_levels(value, spatial_shapes, sampling_locations)
    for index, sampled in enumerate(samples):
        # Σ over the level's points of A_mlqk · x_l(φ_l(p) + Δp_mlqk) (equation 3).
        weights = attention_weights[:, :, :, index].transpose(1, 2)
        weights = weights.to(dtype).reshape(batch * heads, 1, queries, points)
        output = output + (sampled * weights).sum(-1)
    output = output.reshape(batch, heads * width, queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


def reference_key_aware_attention(
    query: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
) -> Tensor:
    """The same of :func:`key_aware_deformable_attention`."""
    batch, queries, heads, width = query.shape
    # All places of a head together: (B·M, D, N, L·P), keys and values at once.
    sampled = torch.cat(list(_sample_levels(value, spatial_shapes, sampling_locations)), dim=-1)
    # softmax(q · k / √D) over the places.
    per_head = query.to(sampled.dtype).permute(0, 2, 3, 1).reshape(batch * heads, width, queries, 1)
    weights = ((per_head * sampled).sum(1, keepdim=True) / math.sqrt(width)).softmax(-1)
    output = (sampled * weights).sum(-1)
    output = output.reshape(batch, heads * width, queries).transpose(1, 2)
    return output.to(value.dtype).contiguous()


def _sample_levels(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor
) -> Iterator[Tensor]:
    """Of each level the values at its places: ``(B·M, D, N, P)``."""
    batch, _, heads, width = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    # grid_sample's coordinates run from -1 to 1, a cell's centre at half-integers.
    grids = 2 * sampling_locations.to(dtype) - 1
    levels = value.to(dtype).split([height * length for height, length in spatial_shapes], dim=1)
    for index, ((height, length), tokens) in enumerate(zip(spatial_shapes, levels, strict=True)):
        # Heads are independent: (B, H·W, M, D) to (B·M, D, H, W), a map for each.
        maps = tokens.permute(0, 2, 3, 1).reshape(batch * heads, width, height, length)
        grid = grids[:, :, :, index].transpose(1, 2).reshape(batch * heads, queries, points, 2)
        yield F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


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


@torch.library.custom_op("proscale::key_aware_deformable_attention", mutates_args=())
def _key_aware_operator(
    query: Tensor, value: Tensor, sizes: Sequence[int], sampling_locations: Tensor, backend: str
) -> Tensor:
    device = value.device.type
    _log_once(logging.INFO, "key-aware deformable attention on %s: backend %s", device, backend)
    with torch.autocast(device, enabled=False):
        return _BACKENDS[backend].key_aware_forward(query, value, _pairs(sizes), sampling_locations)


@torch.library.custom_op("proscale::key_aware_deformable_attention_backward", mutates_args=())
def _key_aware_backward_operator(
    grad_output: Tensor,
    query: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    sampling_locations: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(value.device.type, enabled=False):
        return _BACKENDS[backend].key_aware_backward(
            grad_output, query, value, _pairs(sizes), sampling_locations
        )


@_key_aware_operator.register_fake
def _(query, value, sizes, sampling_locations, backend):
    batch, queries, heads, width = query.shape
    return value.new_empty(batch, queries, heads * width)


@_key_aware_backward_operator.register_fake
def _(grad_output, query, value, sizes, sampling_locations, backend):
    return tuple(torch.empty_like(t) for t in (query, value, sampling_locations))


def _key_aware_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, value, sizes, sampling_locations, backend = inputs
    # Neither samples nor weights are kept: the backward pass makes them anew.
    ctx.save_for_backward(query, value, sampling_locations)
    ctx.sizes, ctx.backend = sizes, backend


def _key_aware_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None, Tensor, None]:
    query, value, sampling_locations = ctx.saved_tensors
    grad_query, grad_value, grad_locations = _key_aware_backward_operator(
        grad_output, query, value, ctx.sizes, sampling_locations, ctx.backend
    )
    return grad_query, grad_value, None, grad_locations, None


_key_aware_operator.register_autograd(_key_aware_backward, setup_context=_key_aware_setup_context)


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


def key_aware_multiply_adds(value_shape: Sequence[int], locations_shape: Sequence[int]) -> int:
    """Cost of the key-aware operator by the shapes of its value and locations."""
    # One sampling serves keys and values. Then the products of the query with its keys, and of the
    # weights with its values: one each for every sampled number.
    sampling = multiply_adds(value_shape, locations_shape)
    return sampling + sampling // 4 * 2


@register_flop_formula(torch.ops.proscale.key_aware_deformable_attention)
def _key_aware_flops(
    query_shape: Any,
    value_shape: Sequence[int],
    sizes: Any,
    locations_shape: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    return 2 * key_aware_multiply_adds(value_shape, locations_shape)


def _pairs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(sizes[::2], sizes[1::2], strict=True))


def _check_shapes(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
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
