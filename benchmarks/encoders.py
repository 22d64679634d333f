"""The encoders of the comparison side by side: multiply-adds, parameters and time.

Models of one backbone and one decoder, with random weights, differ in the pixel decoder alone. All
are called in turns; a time relative to Mask2Former's is the median of the ratios within a round, so
that other load of the machine touches both alike.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from proscale.benchmark.latency import TOTAL, Clock, Timing, device_clock, measure_parts
from proscale.benchmark.machine import print_header
from proscale.benchmark.models import WARMUP, ModelRun, ModelSettings
from proscale.cli.arguments import (
    add_benchmark_arguments,
    find_device,
    naming,
    parse_size,
    try_outputs,
)
from proscale.config import setup_cfg
from proscale.cost.model_cost import ENCODER_PART, NETWORK
from proscale.cost.tables import markdown_table, model_name, print_report
from proscale.errors import ConfigError
from proscale.utils.malloc import disable_malloc_trim
from proscale_cli import errors_in_one_sentence

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "coco" / "panoptic"
BACKBONES = ("r50", "swin_tiny")
#: Configurations of a backbone; the others are relative to the first one.
ENCODERS = (
    "mask2former_{}",
    "rt_m2f_{}",
    "lite_m2f_{}",
    "lite_m2f_{}_light",
    "proscale_{}_333",
    "proscale_{}_222",
    "rt_m2f_{}_light",
    "proscale_{}_111",
)


@dataclass(frozen=True)
class EncoderFigures:
    """Cost and time of a model for one image."""

    encoder: int  #: multiply-adds of the pixel decoder
    network: int  #: multiply-adds from image to classes and masks
    parameters: int  #: of the pixel decoder
    encoder_time: Timing  #: from the backbone's features to those of the decoder
    image_time: Timing  #: from image to results


def measure_encoders(
    runs: Mapping[str, ModelRun], *, repeats: int, clock: Clock
) -> dict[str, EncoderFigures]:
    """Time the models in turns and count them."""
    times = measure_parts(runs, repeats=repeats, warmup=WARMUP, clock=clock)
    figures = {}
    for name, run in runs.items():
        cost = run.multiply_adds()
        decoder = run.model.get_submodule("sem_seg_head.pixel_decoder")
        figures[name] = EncoderFigures(
            encoder=cost[ENCODER_PART],
            network=cost[NETWORK],
            parameters=sum(parameter.numel() for parameter in decoder.parameters()),
            encoder_time=times[name][ENCODER_PART],
            image_time=times[name][TOTAL],
        )
    return figures


def median_ratio(time: Timing, other: Timing) -> float:
    """Of the calls of each round."""
    ratios = [a / b for a, b in zip(time.samples, other.samples, strict=True)]
    return float(np.median(ratios))


def table(figures: Mapping[str, EncoderFigures]) -> str:
    """A row for each model, relative to the first one."""
    first = next(iter(figures.values()))
    rows = []
    for name, one in figures.items():
        row = [name, f"{one.parameters / 1e6:.2f}", f"{one.encoder / 1e9:.2f}"]
        row.append(f"{one.encoder / first.encoder:.0%}")
        row.append(f"{1e3 * one.encoder_time.median:.0f}")
        row.append(f"{median_ratio(one.encoder_time, first.encoder_time):.0%}")
        row.append(f"{one.network / 1e9:.2f}")
        row.append(f"{1e3 * one.image_time.median:.0f}")
        rows.append([*row, f"{median_ratio(one.image_time, first.image_time):.0%}"])
    headers = ["encoder", "parameters, M", "GFLOPs", "of Mask2Former's", "ms", "of its time"]
    headers += ["network, GFLOPs", "image, ms", "of its image's"]
    return markdown_table(rows, headers, text=("encoder",))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; ``arguments`` are those of the command line when None."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--backbone", choices=BACKBONES, default="r50", help="of all models")
    parser.add_argument(
        "--size", type=parse_size, default="640x960", metavar="HxW", help="of the image, pixels"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="time that all threads compute, instead of that on the clock: hardly changed by other "
        "processes, if threads do not spin while they wait (OMP_WAIT_POLICY=PASSIVE)",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table, too")
    add_benchmark_arguments(parser, repeats=15)
    with errors_in_one_sentence("benchmarks/encoders.py"):
        run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Build, measure, print."""
    device = find_device(options.device)
    if options.processor_time and device.type != "cpu":
        raise ConfigError("--processor-time is for --device cpu: others compute by themselves")
    try_outputs(json=options.json, markdown=options.markdown)
    # As ``proscale predict`` does.
    disable_malloc_trim()
    settings = ModelSettings(options.size, batch=1)
    runs = {}
    for pattern in ENCODERS:
        file = str(CONFIGS / f"{pattern.format(options.backbone)}.yaml")
        with naming(file):
            cfg = setup_cfg(file, ["MODEL.DEVICE", options.device])
            runs[model_name(cfg)] = ModelRun(cfg, settings)
    described = {
        "backbone": options.backbone,
        "size": "{}x{}".format(*options.size),
        "weights": "random",
        "time": "of all threads" if options.processor_time else "on the clock",
        "repeats": options.repeats,
    }
    header = print_header(device, described)
    clock = time.process_time if options.processor_time else device_clock(device)
    figures = measure_encoders(runs, repeats=options.repeats, clock=clock)
    encoders = {
        name: asdict(one)
        | {"encoder_time": one.encoder_time.as_dict(), "image_time": one.image_time.as_dict()}
        for name, one in figures.items()
    }
    document = {**header, "encoders": encoders}
    print_report([table(figures)], document, options.json, options.markdown)


if __name__ == "__main__":
    main()
