"""``proscale benchmark [model]``: latency by part, throughput and memory of whole models."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from proscale.benchmark.benchmark_report import (
    latency_table,
    plain_table,
    speed_table,
    times_as_dict,
)
from proscale.benchmark.latency import TOTAL
from proscale.benchmark.machine import fp32_peak
from proscale.benchmark.model_benchmark import (
    DTYPES,
    ModelRun,
    ModelSettings,
    ModelTimes,
    Run,
    benchmark_models,
    compare_with_plain,
)
from proscale.benchmark.peer import NAME as PEER
from proscale.benchmark.peer import PeerRun, is_installed
from proscale.benchmark.plain import TOLERANCE
from proscale.cli.arguments import (
    add_benchmark_arguments,
    add_overrides,
    describe_run,
    find_device,
    parse_size,
    positive,
    print_header,
    short_names,
    split_overrides,
)
from proscale.config import setup_cfg
from proscale.cost.model_inputs import QUERIES_PER_CONFIDENT, TARGETS_PER_IMAGE
from proscale.cost.parts import NETWORK
from proscale.cost.plots import bars, check_format, draw, points, read_results
from proscale.cost.tables import write_json, write_markdown
from proscale.errors import ConfigError
from proscale.utils.malloc import can_disable_malloc_trim

SUBJECT = "model"
KEEPERS = ("ours", "all", "none")
_PLAIN = " (plain)"


def add_parser(subjects: argparse._SubParsersAction) -> None:
    """Add the subject to ``proscale benchmark``."""
    parser = subjects.add_parser(
        SUBJECT,
        help="models part by part and end to end (the default)",
        description="Time models with random weights (MODEL.WEIGHTS is not loaded) from image "
        "tensor to results, part by part; the first is what the others are compared with.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--config-file", nargs="+", required=True, metavar="FILE", help="the models"
    )
    parser.add_argument(
        "--size", type=parse_size, default="640x960", metavar="HxW", help="of the images, pixels"
    )
    parser.add_argument("--batch", type=positive, default=1, help="images per call")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=tuple(DTYPES),
        default=["fp32"],
        help="one or several side by side; all but fp32 are automatic mixed precision",
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="forward and backward pass of a training step instead of inference",
    )
    parser.add_argument("--compile", action="store_true", help="by torch.compile, part by part")
    parser.add_argument(
        "--keep-freed-memory",
        choices=KEEPERS,
        default="ours",
        help="what does not give freed memory back to the system: ours, as in `proscale predict` "
        "and `train_net.py`, but not the plain path and the peer; all that is compared; or none",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="against the plain path, too: the same weights with the reference operator and "
        "straightforward results; checks that results are the same",
    )
    parser.add_argument(
        "--peer",
        choices=("transformers",),
        help="against Hugging Face's Mask2Former with Swin-T, too, the network alone",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables, too")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw latency by part, and against GFLOPs: .svg, .pdf or .png",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help='JSON of quality by model, such as {"proscale_r50_333": {"PQ": 51.4}}: --plot draws '
        "it against latency",
    )
    add_benchmark_arguments(parser, repeats=5)
    add_overrides(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the benchmark."""
    split_overrides(options)
    device = find_device(options.device)
    _check(options)
    if not can_disable_malloc_trim():
        options.keep_freed_memory = "none"
    quality = read_results(options.results) if options.results else None
    runs = _runs(options, device)
    header = describe_run(device, _settings(options))
    print_header(header)

    times = benchmark_models(runs, repeats=options.repeats)
    peak = fp32_peak(device)
    tables = [latency_table(times, options.batch)]
    tables.append(f"fp32 peak (matrix products, measured in this run): {peak / 1e9:.0f} GFLOP/s")
    if any(found.multiply_adds for found in times.values()):
        tables.append(speed_table(times, options.batch, peak))
    differences: dict[str, dict[str, float]] = {}
    if options.plain:
        fast = [name for name in times if name + _PLAIN in times]
        if not options.train:
            differences = {name: compare_with_plain(runs[name]) for name in fast}
        pairs = {name: (times[name], times[name + _PLAIN]) for name in fast}
        tables.append(plain_table(pairs, differences))
    report = "\n\n".join(tables)
    print(report)
    models = {name: times_as_dict(found, options.batch, peak) for name, found in times.items()}
    write_json(
        options.json,
        {**header, "fp32_peak_flops": peak, "models": models, "differences": differences},
    )
    write_markdown(options.markdown, report)
    if options.plot:
        _draw(times, quality, options)
    _check_differences(differences, options)


def _check(options: argparse.Namespace) -> None:
    if options.peer and not is_installed():
        raise ConfigError("--peer transformers: the package transformers is not installed")
    if options.peer and options.train:
        raise ConfigError("--peer is compared at inference; leave out --train")
    if options.results and options.plot is None:
        raise ConfigError("--results needs --plot, where quality is drawn")
    if options.plot:
        check_format(options.plot)


def _runs(options: argparse.Namespace, device: torch.device) -> dict[str, Run]:
    """All that is called in turns, by its name in the tables."""
    runs: dict[str, Run] = {}
    for dtype in options.dtype:
        suffix = f", {dtype}" if len(options.dtype) > 1 else ""
        settings = ModelSettings(
            size=options.size,
            batch=options.batch,
            dtype=dtype,
            train=options.train,
            compiled=options.compile,
            keep_freed_memory=options.keep_freed_memory != "none",
        )
        others = replace(settings, keep_freed_memory=options.keep_freed_memory == "all")
        for name, file in short_names(options.config_file).items():
            runs[name + suffix] = _build(file, options, settings)
            if options.plain:
                plain = replace(others, plain=True, compiled=False)
                runs[name + suffix + _PLAIN] = _build(file, options, plain)
        if options.peer:
            runs[PEER + suffix] = PeerRun(others, device)
    return runs


def _build(file: str, options: argparse.Namespace, settings: ModelSettings) -> ModelRun:
    cfg = setup_cfg(file, [*options.opts, "MODEL.DEVICE", options.device])
    try:
        return ModelRun(cfg, settings)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error


def _settings(options: argparse.Namespace) -> dict[str, str | int]:
    settings = {
        "mode": f"training step, {TARGETS_PER_IMAGE} targets an image, without optimiser"
        if options.train
        else f"inference, one query in {QUERIES_PER_CONFIDENT} sure of a class",
        "weights": "random, MODEL.WEIGHTS is not loaded",
        "size": "{}x{}".format(*options.size),
        "batch": options.batch,
        "dtype": " ".join(options.dtype),
        "compiled": "yes" if options.compile else "no",
        "freed memory kept by": options.keep_freed_memory,
        "repeats": options.repeats,
        "overrides": " ".join(options.opts) or "none",
    }
    if options.peer:
        from transformers import __version__

        settings["transformers"] = __version__
    return settings


def _draw(
    times: Mapping[str, ModelTimes],
    quality: tuple[str, Mapping[str, float]] | None,
    options: argparse.Namespace,
) -> None:
    """Bars of latency by part; latency against GFLOPs; and quality against latency."""
    milliseconds = {
        name: {
            part: 1e3 * timing.median
            for part, timing in found.times.items()
            if part not in (NETWORK, TOTAL)
        }
        for name, found in times.items()
    }
    total = {name: 1e3 * found.times[TOTAL].median for name, found in times.items()}
    label = "latency, ms"
    panels = [bars(milliseconds, label)]
    counted = {
        name: (options.batch * found.multiply_adds[NETWORK] / 1e9, total[name])
        for name, found in times.items()
        if found.multiply_adds
    }
    if counted:
        panels.append(points(counted, ("GFLOPs (multiply-adds) of the network", label)))
    if quality:
        metric, values = quality
        places = {name: (total[name], values[name]) for name in total if name in values}
        if not places:
            raise ConfigError(f"--results has none of {', '.join(total)}")
        panels.append(points(places, (label, metric)))
    draw(panels, options.plot)


def _check_differences(
    differences: Mapping[str, Mapping[str, float]], options: argparse.Namespace
) -> None:
    """Results in float32 must be those of the plain path; mixed precision rounds differently."""
    if options.dtype != ["fp32"]:
        return
    far = [
        f"{name}: {kind} by {difference:.1e}"
        for name, kinds in differences.items()
        for kind, difference in kinds.items()
        if not difference <= TOLERANCE
    ]
    if far:
        raise ConfigError(
            f"results differ from the plain path's by more than {TOLERANCE:g}: {'; '.join(far)}"
        )
    if differences:
        print(f"\nResults are those of the plain path (differences up to {TOLERANCE:g}).")
