"""Speed of the deformable attention operator: all its backends, in turns with the reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proscale.benchmark.latency import Timing, device_clock, measure
from proscale.ops import deformable_attention

BASELINE = "reference"
FORWARD, FORWARD_BACKWARD = "forward", "forward + backward"
WARMUP = 2
# Standard deviation of sampling points around their query, in cells of the level sampled. Offsets
# start on rings of 1 to 4 cells (Deformable DETR, §A.4).
NEAR_CELLS = 2.0


@dataclass(frozen=True)
class OperatorSettings:
    """What the operator is called with.

    Attributes:
        spatial_shapes: (H, W) of each level; every cell of every level is a query.
        heads, width, points: M, D and P of :func:`proscale.ops.deformable_attention`.
        dtype: of the values, e.g. ``float32``. Locations and weights are float32, as in the models.
        near: points lie a few cells around their query, as in a trained model; else anywhere.
        device: where to run.
    """

    spatial_shapes: Sequence[tuple[int, int]]
    heads: int
    width: int
    points: int
    dtype: str
    near: bool
    device: torch.device


@dataclass(frozen=True)
class OperatorTimes:
    """Times of :data:`FORWARD`, which records nothing for a backward pass, and of
    :data:`FORWARD_BACKWARD`, the gradients of all three inputs.

    Attributes:
        by_backend: times of both by name of the backend, the baseline first.
        refused: by name of a backend that does not take these inputs, what it said.
    """

    by_backend: dict[str, dict[str, Timing]]
    refused: dict[str, str]


def benchmark_operator(
    settings: OperatorSettings, backends: Sequence[str], *, repeats: int
) -> OperatorTimes:
    """Time backends and, always, :data:`BASELINE`.

    Args:
        settings: see :class:`OperatorSettings`.
        backends: of :func:`proscale.ops.available_backends`.
        repeats: calls that count, of each backend.
    """
    inputs = operator_inputs(settings)
    shape = (1, inputs[1].shape[1], settings.heads * settings.width)
    gradient = torch.randn(shape).to(inputs[0])
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    refused: dict[str, str] = {}
    for name in dict.fromkeys((BASELINE, *backends)):
        modes = {
            FORWARD: _forward(settings, inputs, name),
            FORWARD_BACKWARD: _forward_backward(settings, inputs, name, gradient),
        }
        # A backend may be made for another device or dtype.
        try:
            for call in modes.values():
                call()
        except (ValueError, RuntimeError) as error:
            if name == BASELINE:
                raise
            refused[name] = str(error)
        else:
            calls |= {(name, mode): call for mode, call in modes.items()}
    times = measure(calls, repeats=repeats, warmup=WARMUP, clock=device_clock(settings.device))
    by_backend: dict[str, dict[str, Timing]] = {}
    for (name, mode), timing in times.items():
        by_backend.setdefault(name, {})[mode] = timing
    return OperatorTimes(by_backend, refused)


def operator_inputs(settings: OperatorSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Values, sampling locations and attention weights of a batch of one, seeded."""
    generator = torch.Generator().manual_seed(0)
    places = torch.cat([_cell_centres(*shape) for shape in settings.spatial_shapes])
    grouped = (1, len(places), settings.heads, len(settings.spatial_shapes), settings.points)
    if settings.near:
        cells = torch.tensor([(width, height) for height, width in settings.spatial_shapes])
        offsets = torch.randn(*grouped, 2, generator=generator) * NEAR_CELLS
        locations = places[:, None, None, None] + offsets / cells[:, None]
    else:
        locations = torch.rand(*grouped, 2, generator=generator)
    value = torch.randn(1, len(places), settings.heads, settings.width, generator=generator)
    weights = torch.randn(grouped, generator=generator).flatten(3).softmax(-1).view(grouped)
    return (
        value.to(settings.device, getattr(torch, settings.dtype)),
        locations.to(settings.device),
        weights.to(settings.device),
    )


def _cell_centres(height: int, width: int) -> Tensor:
    """``(H·W, 2)`` as (x, y) in (0, 1), row by row."""
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack((x, y), dim=-1).view(-1, 2)


def _forward(
    settings: OperatorSettings, inputs: tuple[Tensor, ...], backend: str
) -> Callable[[], object]:
    value, locations, weights = inputs

    @torch.no_grad()
    def call() -> None:
        deformable_attention(value, settings.spatial_shapes, locations, weights, backend)

    return call


def _forward_backward(
    settings: OperatorSettings, inputs: tuple[Tensor, ...], backend: str, gradient: Tensor
) -> Callable[[], object]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    value, locations, weights = leaves

    def call() -> None:
        output = deformable_attention(value, settings.spatial_shapes, locations, weights, backend)
        torch.autograd.grad(output, leaves, gradient)

    return call
