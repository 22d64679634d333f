"""Speed of the deformable attention operators: all backends, in turns with the reference.

Times the forward pass, and the forward pass with all gradients.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proscale.benchmark.latency import Timing, device_clock, measure
from proscale.benchmark.machine import print_header
from proscale.cli.arguments import add_benchmark_arguments, find_device, parse_size, positive
from proscale.cost.tables import markdown_table, write_json
from proscale.errors import ConfigError
from proscale.ops import (
    available_backends,
    deformable_attention,
    key_aware_deformable_attention,
)
from proscale_cli import errors_in_one_sentence

BASELINE = "reference"
FORWARD, FORWARD_BACKWARD = "forward", "forward + backward"
WARMUP = 2
# Standard deviation of sampling points around their query, in cells of the level sampled. Offsets
# start on rings of 1 to 4 cells (Deformable DETR, §A.4).
NEAR_CELLS = 2.0


@dataclass(frozen=True)
class OperatorSettings:
    """Inputs of the operator.

    Attributes:
        spatial_shapes: (H, W) of each level; every cell of every level is a query.
        heads, width, points: M, D and P of :func:`proscale.ops.deformable_attention`.
        dtype: of the values, e.g. ``float32``. Locations and weights are float32, as in the models.
        near: points lie a few cells around their query, as in a trained model; else anywhere.
        device: where to run.
        key_aware: :func:`proscale.ops.key_aware_deformable_attention`, which has queries in place
            of the weights.
    """

    spatial_shapes: Sequence[tuple[int, int]]
    heads: int
    width: int
    points: int
    dtype: str
    near: bool
    device: torch.device
    key_aware: bool = False


@dataclass(frozen=True)
class OperatorTimes:
    """Times of :data:`FORWARD`, which records nothing for a backward pass, and of
    :data:`FORWARD_BACKWARD`, the gradients of all three inputs.

    Attributes:
        by_backend: times of both by name of the backend, the baseline first.
        refused: message of a backend that does not take these inputs, by its name.
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
    """Values, sampling locations and attention weights (or queries) of a batch of one, seeded."""
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
    if settings.key_aware:
        weights = torch.randn(*grouped[:3], settings.width, generator=generator)
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


def _attend(settings: OperatorSettings, inputs: Sequence[Tensor], backend: str) -> Tensor:
    value, locations, weights = inputs
    shapes = settings.spatial_shapes
    if settings.key_aware:
        return key_aware_deformable_attention(weights, value, shapes, locations, backend)
    return deformable_attention(value, shapes, locations, weights, backend)


def _forward(
    settings: OperatorSettings, inputs: tuple[Tensor, ...], backend: str
) -> Callable[[], object]:
    @torch.no_grad()
    def call() -> None:
        _attend(settings, inputs, backend)

    return call


def _forward_backward(
    settings: OperatorSettings, inputs: tuple[Tensor, ...], backend: str, gradient: Tensor
) -> Callable[[], object]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]

    def call() -> None:
        torch.autograd.grad(_attend(settings, leaves, backend), leaves, gradient)

    return call


def operator_table(times: OperatorTimes) -> str:
    """A row for every backend, with its speed-up over the baseline; then the refusals."""
    baseline = times.by_backend[BASELINE]
    rows = []
    for name, modes in times.by_backend.items():
        row = [name]
        for mode, timing in modes.items():
            speed_up = baseline[mode].median / timing.median
            row += [*timing.milliseconds, f"{speed_up:.2f}x"]
        rows.append(row)
    headers = ["backend"]
    for mode in baseline:
        headers += [f"{mode}, ms", "quartiles", "speed-up"]
    refused = [f"\n{name} refused: {reason}" for name, reason in times.refused.items()]
    return markdown_table(rows, headers, text=("backend",)) + "".join(refused)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; ``arguments`` are those of the command line when None."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--sizes",
        type=lambda text: [parse_size(size) for size in text.split(",")],
        default="20x30,40x60,80x120",
        metavar="HxW,…",
        help="levels; every cell is a query",
    )
    parser.add_argument("--heads", type=positive, default=8, help="attention heads")
    parser.add_argument("--width", type=positive, default=32, help="channels of a head")
    parser.add_argument("--points", type=positive, default=4, help="points per head and level")
    parser.add_argument(
        "--key-aware",
        action="store_true",
        help="the operator that weighs places by products of a query with their values",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the values; locations and weights are float32",
    )
    parser.add_argument(
        "--spread",
        choices=("near", "far"),
        default="near",
        help=f"points {NEAR_CELLS:g} cells (standard deviation) from their query, as in a trained "
        "model, or anywhere",
    )
    parser.add_argument(
        "--backends",
        type=lambda names: names.split(","),
        default=",".join(available_backends()),
        metavar="NAME,…",
        help=f"compared with {BASELINE}",
    )
    add_benchmark_arguments(parser, repeats=15)
    with errors_in_one_sentence("benchmarks/deformable_attention.py"):
        run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    unknown = set(options.backends) - set(available_backends())
    if unknown:
        raise ConfigError(
            f"--backends is {', '.join(sorted(unknown))}: expected "
            f"{', '.join(available_backends())}"
        )
    device = find_device(options.device)
    settings = OperatorSettings(
        spatial_shapes=options.sizes,
        heads=options.heads,
        width=options.width,
        points=options.points,
        dtype=options.dtype,
        near=options.spread == "near",
        device=device,
        key_aware=options.key_aware,
    )
    shown = {
        "levels": ", ".join(f"{height}x{width}" for height, width in options.sizes),
        "heads": options.heads,
        "width": options.width,
        "points": options.points,
        "spread": options.spread,
        "dtype": options.dtype,
        "key-aware": options.key_aware,
        "repeats": options.repeats,
    }
    header = print_header(device, shown)
    times = benchmark_operator(settings, options.backends, repeats=options.repeats)
    print(operator_table(times))
    backends = {
        name: {mode: timing.as_dict() for mode, timing in modes.items()}
        for name, modes in times.by_backend.items()
    }
    write_json(options.json, {**header, "backends": backends, "refused": times.refused})


if __name__ == "__main__":
    main()
