"""``proscale benchmark evaluation``: how fast panoptic predictions are scored on this machine."""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from proscale.benchmark.evaluation_benchmark import (
    PANOPTICAPI,
    EvaluationSettings,
    benchmark_evaluation,
)
from proscale.benchmark.latency import Timing
from proscale.benchmark.machine import describe_machine
from proscale.cli.arguments import parse_size, positive
from proscale.cost.tables import markdown_table, write_json


def add_parser(subjects: argparse._SubParsersAction) -> None:
    """Add the subject to ``proscale benchmark``."""
    parser = subjects.add_parser(
        "evaluation",
        help="panoptic evaluation",
        description="Time the scoring of generated panoptic predictions, in turns with COCO's "
        "panopticapi where it is installed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--images", type=positive, default=500, help="scored in a call")
    parser.add_argument(
        "--size", type=parse_size, default="480x640", metavar="HxW", help="of the images, pixels"
    )
    parser.add_argument("--workers", type=positive, default=2, help="threads of the evaluator")
    parser.add_argument("--repeats", type=positive, default=3, help="calls that count")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run ``proscale benchmark evaluation``."""
    machine = describe_machine(torch.device("cpu"))
    settings = EvaluationSettings(images=options.images, size=options.size, workers=options.workers)
    print("; ".join(f"{name}: {value}" for name, value in machine.items()))
    print(
        f"images: {options.images} of {options.size[0]}x{options.size[1]}; "
        f"workers: {options.workers}; repeats: {options.repeats}\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        times = benchmark_evaluation(settings, Path(folder), repeats=options.repeats)
    print(_table(times, options.images))
    if PANOPTICAPI not in times:
        print("\npanopticapi is not installed (pip install --no-deps panopticapi-lite==0.2.0)")
    runs = {name: timing.as_dict() for name, timing in times.items()}
    write_json(
        options.json,
        {
            "machine": machine,
            "settings": {
                "images": options.images,
                "size": list(options.size),
                "workers": options.workers,
                "repeats": options.repeats,
            },
            "runs": runs,
        },
    )


def _table(times: Mapping[str, Timing], images: int) -> str:
    baseline = times.get(PANOPTICAPI)
    rows = []
    for name, timing in times.items():
        lower, upper = timing.quartiles
        rows.append(
            [
                name,
                f"{timing.median:.2f}",
                f"{lower:.2f}–{upper:.2f}",
                f"{1e3 * timing.median / images:.2f}",
                f"{baseline.median / timing.median:.2f}x" if baseline else "",
            ]
        )
    headers = ["scored from", "s", "quartiles", "ms per image", "speed-up"]
    return markdown_table(rows, headers, headers[:1])
