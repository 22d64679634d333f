"""``proscale benchmark merging``: what token merging gains on this machine, backbone alone."""

import argparse
from collections.abc import Callable, Collection, Mapping
from itertools import product

from proscale.benchmark.latency import Timing
from proscale.benchmark.merging_benchmark import RUNS, MergingSettings, benchmark_merging
from proscale.cli.arguments import (
    add_benchmark_arguments,
    describe_run,
    find_device,
    parse_size,
    positive,
    print_header,
)
from proscale.cost.tables import markdown_table, write_json
from proscale.modeling.backbones.mit import VARIANTS
from proscale.modeling.backbones.token_merging_config import NO_MERGING, PRESETS


def add_parser(subjects: argparse._SubParsersAction) -> None:
    """Add the subject to ``proscale benchmark``."""
    parser = subjects.add_parser(
        "merging",
        help="Mix Transformers with token merging",
        description="Time Mix Transformers with random weights, unmerged, with every preset, on "
        "halved images, and unmerged with an attention that holds its whole matrix.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--variants",
        type=_several(_one_of(VARIANTS)),
        default="b0",
        metavar="NAME,…",
        help=", ".join(VARIANTS),
    )
    parser.add_argument(
        "--sizes",
        type=_several(parse_size),
        default="1024x1024",
        metavar="HxW,…",
        help="of the image, pixels",
    )
    parser.add_argument(
        "--presets",
        type=_several(_one_of(PRESETS)),
        default=",".join(PRESETS),
        metavar="NAME,…",
        help="what to compare with the unmerged model",
    )
    parser.add_argument(
        "--matching-reuse",
        type=positive,
        default=1,
        help="successive blocks that share a matching (MODEL.MIT.MATCHING_REUSE)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 is automatic mixed precision",
    )
    add_benchmark_arguments(parser, repeats=9)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run ``proscale benchmark merging``."""
    device = find_device(options.device)
    header = describe_run(
        device,
        {
            "dtype": options.dtype,
            "matching reuse": options.matching_reuse,
            "repeats": options.repeats,
        },
    )
    print_header(header)

    runs = [name for name in RUNS if name not in PRESETS or name in options.presets]
    times = {}
    for variant, size in product(options.variants, options.sizes):
        settings = MergingSettings(
            variant=variant,
            size=size,
            dtype=options.dtype,
            matching_reuse=options.matching_reuse,
            device=device,
        )
        times[variant, size] = benchmark_merging(settings, runs, repeats=options.repeats)
    print(_table(times))
    document = [
        {
            "variant": variant,
            "size": list(size),
            "runs": {name: timing.as_dict() for name, timing in by_run.items()},
        }
        for (variant, size), by_run in times.items()
    ]
    write_json(options.json, {**header, "results": document})


def _table(times: Mapping[tuple[str, tuple[int, int]], Mapping[str, Timing]]) -> str:
    rows = []
    for (variant, (height, width)), by_run in times.items():
        plain = by_run[NO_MERGING].median
        for name, timing in by_run.items():
            lower, upper = timing.quartiles
            rows.append(
                [
                    variant,
                    f"{height}x{width}",
                    name,
                    f"{1e3 * timing.median:.4g}",
                    f"{1e3 * lower:.4g}–{1e3 * upper:.4g}",
                    f"{plain / timing.median:.2f}x",
                ]
            )
    text = ("variant", "size", "merging")
    return markdown_table(rows, [*text, "ms", "quartiles", "speed-up"], text)


def _several(parse: Callable[[str], object]) -> Callable[[str], list]:
    return lambda text: [parse(part) for part in text.split(",")]


def _one_of(accepted: Collection[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in accepted:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {', '.join(accepted)}")
        return text

    return parse
