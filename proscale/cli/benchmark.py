"""``proscale benchmark``: how fast models, the operator and token merging are on this machine.

Everything that is compared is called in turns in one process; figures are medians with quartiles.
Without a SUBJECT, models are timed: ``proscale benchmark --config-file F [F …]``.
"""

import argparse
from collections.abc import Callable, Collection, Sequence

from proscale.benchmark.benchmark_report import operator_table
from proscale.benchmark.operator_benchmark import (
    BASELINE,
    NEAR_CELLS,
    OperatorSettings,
    benchmark_operator,
)
from proscale.cli import benchmark_evaluation, benchmark_merging, benchmark_model
from proscale.cli.arguments import (
    add_benchmark_arguments,
    describe_run,
    find_device,
    parse_size,
    positive,
    print_header,
)
from proscale.cost.tables import write_json
from proscale.errors import ConfigError
from proscale.ops import available_backends


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    subjects = parser.add_subparsers(title="what to time", required=True, metavar="SUBJECT")
    benchmark_model.add_parser(subjects)
    _add_operator_parser(subjects)
    benchmark_merging.add_parser(subjects)
    benchmark_evaluation.add_parser(subjects)
    parser.parse_known_args = _with_default(parser.parse_known_args, subjects.choices)


def _with_default(parse: Callable, subjects: Collection[str]) -> Callable:
    """Has arguments that name no subject mean the model benchmark."""

    def parse_known_args(
        arguments: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        first = next(iter(arguments), "--help")
        if first not in (*subjects, "-h", "--help"):
            arguments = [benchmark_model.SUBJECT, *arguments]
        return parse(arguments, namespace)

    return parse_known_args


def _add_operator_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser(
        "operator",
        help="deformable attention, every backend against the reference",
        description="Time deformable attention: forward, and forward with all gradients.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--sizes",
        type=_parse_sizes,
        default="20x30,40x60,80x120",
        metavar="HxW,…",
        help="levels; every cell is a query",
    )
    parser.add_argument("--heads", type=positive, default=8, help="attention heads")
    parser.add_argument("--width", type=positive, default=32, help="channels of a head")
    parser.add_argument("--points", type=positive, default=4, help="points per head and level")
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
        help=f"what to compare with {BASELINE}",
    )
    add_benchmark_arguments(parser, repeats=15)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run ``proscale benchmark operator``."""
    unknown = set(options.backends) - set(available_backends())
    if unknown:
        raise ConfigError(
            f"--backends has {', '.join(sorted(unknown))}: expected "
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
    )
    levels = ", ".join(f"{height}x{width}" for height, width in options.sizes)
    header = describe_run(
        device,
        {
            "levels": levels,
            "heads": options.heads,
            "width": options.width,
            "points": options.points,
            "spread": options.spread,
            "dtype": options.dtype,
            "repeats": options.repeats,
        },
    )
    print_header(header)

    times = benchmark_operator(settings, options.backends, repeats=options.repeats)
    print(operator_table(times))
    backends = {
        name: {mode: timing.as_dict() for mode, timing in modes.items()}
        for name, modes in times.by_backend.items()
    }
    write_json(options.json, {**header, "backends": backends, "refused": times.refused})


def _parse_sizes(text: str) -> list[tuple[int, int]]:
    return [parse_size(size) for size in text.split(",")]
