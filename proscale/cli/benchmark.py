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
    list_tables,
    times_as_dict,
)
from proscale.cli import arguments
from proscale.config import setup_cfg
from proscale.cost.model_cost import NETWORK
from proscale.cost.plots import draw_costs, points
from proscale.cost.tables import print_report
from proscale.utils.malloc import disable_malloc_trim


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    arguments.add_models(parser)
    parser.add_argument(
        "--size",
        type=arguments.parse_size,
        default="640x960",
        metavar="HxW",
        help="of the images, pixels",
    )
    parser.add_argument("--batch", type=arguments.positive, default=1, help="images per call")
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
    arguments.add_report_arguments(
        parser, plot="latency by part, and against GFLOPs", against="latency"
    )
    arguments.add_benchmark_arguments(parser, repeats=5)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    arguments.split_overrides(options)
    device = arguments.find_device(options.device)
    quality = arguments.check_report_arguments(options)
    # As ``proscale predict`` and ``train_net.py`` do; this is about the CPU's memory alone.
    kept = disable_malloc_trim()
    runs = build_runs(options)
    settings = {**describe_settings(options), "freed memory": "kept" if kept else "given back"}
    header = print_header(device, settings)
    times = benchmark_models(runs, repeats=options.repeats)
    # Measured in the same run, because other load of the machine slows both.
    peak = fp32_peak(device)
    tables = list_tables(times, options.batch, peak)
    models = {name: times_as_dict(found, options.batch, peak) for name, found in times.items()}
    document = {**header, "fp32_peak_flops": peak, "models": models}
    print_report(tables, document, options.json, options.markdown)
    if options.plot:
        draw_times(times, quality, options)


def build_runs(options: argparse.Namespace) -> dict[str, ModelRun]:
    """The models in every number format, by their names in the tables."""
    runs = {}
    for dtype in options.dtype:
        # Models of one number format need no mark of it.
        suffix = f", {dtype}" if len(options.dtype) > 1 else ""
        settings = ModelSettings(
            options.size, options.batch, dtype, train=options.train, compiled=options.compile
        )
        for name, file in arguments.short_names(options.config_file).items():
            with arguments.naming(file):
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


def draw_times(
    times: Mapping[str, ModelTimes],
    quality: tuple[str, Mapping[str, float]] | None,
    options: argparse.Namespace,
) -> None:
    """Bars of latency by part; latency against GFLOPs; and quality against latency."""
    total = {name: 1e3 * found.times[TOTAL].median for name, found in times.items()}
    # Pieces of a bar add up to the total.
    parts = {
        name: {
            part: 1e3 * timing.median
            for part, timing in found.times.items()
            if part not in (NETWORK, TOTAL)
        }
        for name, found in times.items()
    }
    # A training step's multiply-adds are not counted.
    counted = {
        name: (options.batch * found.multiply_adds[NETWORK] / 1e9, total[name])
        for name, found in times.items()
        if found.multiply_adds
    }
    label = "latency, ms"
    axes = ("GFLOPs (multiply-adds) of the network", label)
    panels = [points(counted, axes)] if counted else []
    # Quality against latency is the trade-off that a user has to choose from.
    draw_costs(options.plot, label, parts, total, panels=panels, quality=quality)
