"""``proscale benchmark``: how fast the operator and whole models are on this machine.

Everything that is compared is called in turns in one process; figures are medians with quartiles.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from proscale.analysis.benchmark_report import (
    cost_as_dict,
    latency_table,
    operator_table,
    speed_table,
)
from proscale.analysis.machine import describe_machine, fp32_peak
from proscale.analysis.model_benchmark import (
    QUERIES_PER_CONFIDENT,
    TARGETS_PER_IMAGE,
    ModelRun,
    ModelSettings,
    benchmark_models,
)
from proscale.analysis.operator_benchmark import (
    BASELINE,
    NEAR_CELLS,
    OperatorSettings,
    benchmark_operator,
)
from proscale.engine import ConfigError, setup_cfg
from proscale.ops import available_backends


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to ``proscale``."""
    parser = commands.add_parser(
        "benchmark",
        help="time the operator or whole models",
        description=__doc__.split("\n\n", 1)[1],
    )
    subjects = parser.add_subparsers(title="what to time", required=True, metavar="SUBJECT")
    _add_operator_parser(subjects)
    _add_model_parser(subjects)


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
    parser.add_argument("--heads", type=_positive, default=8, help="attention heads")
    parser.add_argument("--width", type=_positive, default=32, help="channels of a head")
    parser.add_argument("--points", type=_positive, default=4, help="points per head and level")
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
    _add_common_arguments(parser, repeats=15)
    parser.set_defaults(run=run_operator)


def _add_model_parser(subjects: argparse._SubParsersAction) -> None:
    parser = subjects.add_parser(
        "model",
        help="models part by part and end to end",
        description="Time models with random weights (MODEL.WEIGHTS is not loaded) from image "
        "tensor to results, part by part; the first is what the others are compared with.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--config-file", nargs="+", required=True, metavar="FILE", help="the models"
    )
    parser.add_argument(
        "--size", type=_parse_size, default="640x960", metavar="HxW", help="of the images, pixels"
    )
    parser.add_argument("--batch", type=_positive, default=1, help="images per call")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 is automatic mixed precision",
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="forward and backward pass of a training step instead of inference",
    )
    _add_common_arguments(parser, repeats=5)
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="configuration overrides for all models; not right behind --config-file",
    )
    parser.set_defaults(run=run_model)


def _add_common_arguments(parser: argparse.ArgumentParser, *, repeats: int) -> None:
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to run",
    )
    parser.add_argument("--repeats", type=_positive, default=repeats, help="calls that count")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, too")


def run_operator(options: argparse.Namespace) -> None:
    """Run ``proscale benchmark operator``."""
    unknown = set(options.backends) - set(available_backends())
    if unknown:
        raise ConfigError(
            f"--backends has {', '.join(sorted(unknown))}; accepted are "
            f"{', '.join(available_backends())}"
        )
    device = _device(options.device)
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
    header = _header(
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
    print(_describe(header), flush=True)

    times = benchmark_operator(settings, options.backends, repeats=options.repeats)
    print(operator_table(times))
    backends = {
        name: {mode: timing.as_dict() for mode, timing in modes.items()}
        for name, modes in times.by_backend.items()
    }
    _write_json(options.json, {**header, "backends": backends, "refused": times.refused})


def run_model(options: argparse.Namespace) -> None:
    """Run ``proscale benchmark model``."""
    device = _device(options.device)
    runs = {name: _build(file, options) for name, file in _names(options.config_file).items()}
    header = _header(
        device,
        {
            "mode": f"training step, {TARGETS_PER_IMAGE} targets an image, without optimiser"
            if options.train
            else f"inference, one query in {QUERIES_PER_CONFIDENT} sure of a class",
            "weights": "random, MODEL.WEIGHTS is not loaded",
            "size": "{}x{}".format(*options.size),
            "batch": options.batch,
            "dtype": options.dtype,
            "repeats": options.repeats,
            "overrides": " ".join(options.opts) or "none",
        },
    )
    print(_describe(header), flush=True)

    costs = benchmark_models(runs, repeats=options.repeats)
    peak = fp32_peak(device)
    print(latency_table(costs, options.batch))
    if not options.train:
        print(f"\nfp32 peak (matrix products, measured in this run): {peak / 1e9:.0f} GFLOP/s\n")
        print(speed_table(costs, options.batch, peak))
    _write_json(
        options.json,
        {
            **header,
            "fp32_peak_flops": peak,
            "models": {
                name: cost_as_dict(cost, options.batch, peak) for name, cost in costs.items()
            },
        },
    )


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but CUDA is not available; accepted here is cpu")
    return torch.device(name)


def _names(files: Sequence[str]) -> dict[str, str]:
    """Short names of configuration files: without folder where that tells them apart."""
    if len(set(files)) < len(files):
        raise ConfigError(f"--config-file has a file twice: {' '.join(files)}")
    stems = [Path(file).stem for file in files]
    return dict(zip(stems if len(set(stems)) == len(stems) else files, files, strict=True))


def _build(file: str, options: argparse.Namespace) -> ModelRun:
    cfg = setup_cfg(file, [*options.opts, "MODEL.DEVICE", options.device])
    settings = ModelSettings(
        size=options.size, batch=options.batch, dtype=options.dtype, train=options.train
    )
    try:
        return ModelRun(cfg, settings)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error


def _header(device: torch.device, settings: Mapping[str, str | int]) -> dict[str, dict]:
    return {"machine": describe_machine(device), "settings": dict(settings)}


def _describe(header: Mapping[str, Mapping[str, str | int]]) -> str:
    lines = (
        "; ".join(f"{name}: {value}" for name, value in group.items()) for group in header.values()
    )
    return "\n".join(lines) + "\n"


def _write_json(file: Path | None, document: Mapping) -> None:
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nAll figures: {file}")


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: accepts whole numbers from 1")
    return value


def _parse_size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2:
        raise argparse.ArgumentTypeError(f"{text!r}: accepts HxW, such as 640x960")
    return _positive(sides[0]), _positive(sides[1])


def _parse_sizes(text: str) -> list[tuple[int, int]]:
    return [_parse_size(size) for size in text.split(",")]
