"""Multi-scale deformable attention (Deformable DETR, §4.1): one interface over several backends."""

from collections.abc import Callable, Sequence

from torch import Tensor

from proscale.ops import reference

_BACKENDS: dict[str, Callable[..., Tensor]] = {"reference": reference.deformable_attention}


def available_backends() -> tuple[str, ...]:
    """Names that ``backend`` of :func:`deformable_attention` accepts on this machine."""
    return tuple(_BACKENDS)


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Weighted sum of values sampled bilinearly around each query, over several levels.

    A location in ``[0, 1]²`` covers a level's whole map, cells' centres lie at half-integers, and
    outside the map values are zero.

    Args:
        value: ``(B, S, M, D)``, the levels' tokens one after another, S = ΣH·W.
        spatial_shapes: ``(H, W)`` of each of the L levels, as Python ints.
        sampling_locations: ``(B, N, M, L, P, 2)`` as (x, y).
        attention_weights: ``(B, N, M, L, P)``.
        backend: one of :func:`available_backends`; chosen by device when None.

    Returns:
        ``(B, N, M·D)`` in the dtype of ``value``; differentiable with respect to all tensors.

    Raises:
        ValueError: if shapes do not fit together, or the backend is unknown.
    """
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    if backend is None:
        backend = "reference"
    if backend not in _BACKENDS:
        raise ValueError(f"backend is {backend!r}: accepts {', '.join(_BACKENDS)}")
    return _BACKENDS[backend](value, spatial_shapes, sampling_locations, attention_weights)


def _check_shapes(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    if value.dim() != 4:
        raise ValueError(f"value has shape {tuple(value.shape)}: expected (B, S, M, D)")
    batch, tokens, heads, _ = value.shape
    expected = sum(height * width for height, width in spatial_shapes)
    if tokens != expected:
        raise ValueError(
            f"value holds {tokens} tokens, but spatial_shapes {list(spatial_shapes)} make "
            f"{expected}"
        )
    shape = tuple(sampling_locations.shape)
    if len(shape) != 6 or (shape[0], shape[2], shape[3], shape[5]) != (
        batch,
        heads,
        len(spatial_shapes),
        2,
    ):
        raise ValueError(
            f"sampling_locations has shape {shape}: expected "
            f"({batch}, N, {heads}, {len(spatial_shapes)}, P, 2)"
        )
    if tuple(attention_weights.shape) != shape[:-1]:
        raise ValueError(
            f"attention_weights has shape {tuple(attention_weights.shape)}: expected {shape[:-1]}"
        )
