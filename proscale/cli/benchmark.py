"""``proscale benchmark``: latency by part, throughput and memory of whole models.

Times models with random weights (MODEL.WEIGHTS is not loaded) from image tensor to results, part by
part. All models are called in turns in one process; numbers are medians with quartiles, and
relative to the first model.
"""

import argparse
from collections.abc import Mapping

from proscale.benchmark.latency import TOTAL
from proscale.benchmark.machine import fp32_peak, print_header
from proscale.benchmark.models import (
    DTYPES,
    QUERIES_PER_CONFIDENT,
    TARGETS_PER_IMAGE,
    ModelRun,
    ModelSettings,
    ModelTimes,
    benchmark_models,
)
from proscale.benchmark.tables import latency_table, speed_table, times_as_dict
from proscale.cli.arguments import (
    add_benchmark_arguments,
    add_models,
    add_overrides,
    add_report_arguments,
    check_report_arguments,
    find_device,
    naming,
    parse_size,
    positive,
    short_names,
    split_overrides,
)
from proscale.config import setup_cfg
from proscale.cost.parts import NETWORK
from proscale.cost.plots import bars, draw, points, quality_points
from proscale.cost.tables import write_json, write_markdown
from proscale.utils.malloc import disable_malloc_trim


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add_models(parser)
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
    add_report_arguments(parser, plot="latency by part, and against GFLOPs", against="latency")
    add_benchmark_arguments(parser, repeats=5)
    add_overrides(parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    split_overrides(options)
    device = find_device(options.device)
    quality = check_report_arguments(options)
    # As ``proscale predict`` and ``train_net.py`` do; this is about the CPU's memory alone.
    kept = disable_malloc_trim()
    runs = build_runs(options)
    header = print_header(
        device, {**describe_settings(options), "freed memory": "kept" if kept else "given back"}
    )
    times = benchmark_models(runs, repeats=options.repeats)
    # Measured in the same run, because other load of the machine slows both.
    peak = fp32_peak(device)
    report = "\n\n".join(list_tables(times, options.batch, peak))
    print(report)
    models = {name: times_as_dict(found, options.batch, peak) for name, found in times.items()}
    write_json(options.json, {**header, "fp32_peak_flops": peak, "models": models})
    write_markdown(options.markdown, report)
    if options.plot:
        draw_times(times, quality, options)


def build_runs(options: argparse.Namespace) -> dict[str, ModelRun]:
    """The models in every number format, by their names in the tables."""
    runs = {}
    for dtype in options.dtype:
        # Models of one number format need no mark of it.
        suffix = f", {dtype}" if len(options.dtype) > 1 else ""
        settings = ModelSettings(
            size=options.size,
            batch=options.batch,
            dtype=dtype,
            train=options.train,
            compiled=options.compile,
        )
        for name, file in short_names(options.config_file).items():
            with naming(file):
                cfg = setup_cfg(file, [*options.opts, "MODEL.DEVICE", options.device])
                runs[name + suffix] = ModelRun(cfg, settings)
    return runs


def describe_settings(options: argparse.Namespace) -> dict[str, str | int]:
    """The settings of the runs, for the head of the report."""
    return {
        "mode": f"training step, {TARGETS_PER_IMAGE} targets an image, without optimiser"
        if options.train
        else f"inference, one query in {QUERIES_PER_CONFIDENT} sure of a class",
        "weights": "random, MODEL.WEIGHTS is not loaded",
        "size": "{}x{}".format(*options.size),
        "batch": options.batch,
        "dtype": " ".join(options.dtype),
        "compiled": "yes" if options.compile else "no",
        "repeats": options.repeats,
        "overrides": " ".join(options.opts) or "none",
    }


def list_tables(times: Mapping[str, ModelTimes], batch: int, peak: float) -> list[str]:
    """Latency, the machine's peak, and speed where multiply-adds were counted."""
    tables = [latency_table(times, batch)]
    tables.append(f"fp32 peak (matrix products, measured in this run): {peak / 1e9:.0f} GFLOP/s")
    if any(found.multiply_adds for found in times.values()):
        tables.append(speed_table(times, batch, peak))
    return tables


def draw_times(
    times: Mapping[str, ModelTimes],
    quality: tuple[str, Mapping[str, float]] | None,
    options: argparse.Namespace,
) -> None:
    """Bars of latency by part; latency against GFLOPs; and quality against latency."""
    # Every part, the network as a whole, and the total.
    milliseconds = {
        name: {part: 1e3 * timing.median for part, timing in found.times.items()}
        for name, found in times.items()
    }
    parts = {
        name: {part: value for part, value in values.items() if part not in (NETWORK, TOTAL)}
        for name, values in milliseconds.items()
    }
    total = {name: values[TOTAL] for name, values in milliseconds.items()}
    label = "latency, ms"
    # Pieces of a bar add up to the total.
    panels = [bars(parts, label)]
    # A training step's multiply-adds are not counted.
    counted = {
        name: (options.batch * found.multiply_adds[NETWORK] / 1e9, total[name])
        for name, found in times.items()
        if found.multiply_adds
    }
    if counted:
        panels.append(points(counted, ("GFLOPs (multiply-adds) of the network", label)))
    # The trade-off that a user has to choose from.
    if quality:
        panels.append(quality_points(quality, total, label))
    draw(panels, options.plot)
