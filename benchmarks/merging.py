"""Speed of Mix Transformers with merged tokens, backbone alone.

With random weights: every preset and halved images, in turns with the unmerged model, and with one
whose attention holds its whole matrix. Merging shortens attention, with projections and the merging
itself; the share of time outside of it bounds what can be gained.
"""

import argparse
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from proscale.benchmark.latency import TOTAL, Stopwatch, Timing, device_clock, measure_parts
from proscale.benchmark.machine import print_header
from proscale.benchmark.merging import DOWNSAMPLE
from proscale.cli.arguments import add_benchmark_arguments, find_device, parse_size, positive
from proscale.cost.tables import markdown_table, write_json
from proscale.modeling.backbones.mit import VARIANTS, EfficientAttention, MixVisionTransformer
from proscale.modeling.backbones.token_merging_config import NO_MERGING, PRESETS
from proscale_cli import errors_in_one_sentence

#: The unmerged model whose attention holds its whole matrix, as SegFormer++ measured.
MATRIX = "none, matrix attention"
RUNS = (*PRESETS, DOWNSAMPLE, MATRIX)
WARMUP = 1
ATTENTION, REST = "attention", "rest"


@dataclass(frozen=True)
class MergingSettings:
    """The model and its input.

    Attributes:
        variant: ``b0`` to ``b5``; its weights are random.
        size: (height, width) of the image, pixels.
        dtype: ``float32``, or of automatic mixed precision.
        matching_reuse: successive blocks that share a matching.
        device: where to run.
    """

    variant: str
    size: tuple[int, int]
    dtype: str
    matching_reuse: int
    device: torch.device


def benchmark_merging(
    settings: MergingSettings, runs: Sequence[str], *, repeats: int
) -> dict[str, dict[str, Timing]]:
    """Time the backbone alone on one image, :data:`NO_MERGING` first, by :data:`ATTENTION`,
    :data:`REST` and :data:`TOTAL`.

    Args:
        settings: see :class:`MergingSettings`.
        runs: of :data:`RUNS`.
        repeats: calls that count, of each.
    """
    backbone, halving = (_build(settings, downsample) for downsample in (False, True))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, *settings.size, generator=generator).to(settings.device)

    def call(run: str) -> Callable[[Stopwatch], object]:
        model = halving if run == DOWNSAMPLE else backbone
        merging = run if run in PRESETS else NO_MERGING

        def forward(watch: Stopwatch) -> None:
            model.set_token_merging(merging)
            attention = sdpa_kernel(SDPBackend.MATH) if run == MATRIX else nullcontext()
            with (
                torch.inference_mode(),
                attention,
                _precision(settings),
                _lapping_attention(model, watch),
            ):
                model(image)
            watch.lap(REST)

        return forward

    calls = {run: call(run) for run in dict.fromkeys((NO_MERGING, *runs))}
    return measure_parts(calls, repeats=repeats, warmup=WARMUP, clock=device_clock(settings.device))


@contextmanager
def _lapping_attention(model: nn.Module, watch: Stopwatch) -> Iterator[None]:
    """Within it ``watch`` tells attention, with its merging, from the rest of the model."""
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, EfficientAttention):
                hooks.enter_context(module.register_forward_pre_hook(watch.hook(REST)))
                hooks.enter_context(module.register_forward_hook(watch.hook(ATTENTION)))
        yield


def _build(settings: MergingSettings, downsample: bool) -> MixVisionTransformer:
    embed_dim, depths = VARIANTS[settings.variant]
    torch.manual_seed(0)
    backbone = MixVisionTransformer(
        embed_dim=embed_dim,
        depths=depths,
        downsample=downsample,
        matching_reuse=settings.matching_reuse,
    )
    return backbone.to(settings.device).eval()


def _precision(settings: MergingSettings) -> AbstractContextManager:
    if settings.dtype == "float32":
        return nullcontext()
    return torch.autocast(settings.device.type, dtype=getattr(torch, settings.dtype))


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; ``arguments`` are those of the command line when None."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
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
        help="compared with the unmerged model",
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
    with errors_in_one_sentence("benchmarks/merging.py"):
        run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    device = find_device(options.device)
    shown = {"dtype": options.dtype, "matching reuse": options.matching_reuse}
    header = print_header(device, {**shown, "repeats": options.repeats})
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
    print(merging_table(times))
    results = [
        {
            "variant": variant,
            "size": list(size),
            "runs": {
                name: {
                    **parts[TOTAL].as_dict(),
                    "parts": {part: parts[part].as_dict() for part in (ATTENTION, REST)},
                }
                for name, parts in by_run.items()
            },
        }
        for (variant, size), by_run in times.items()
    ]
    write_json(options.json, {**header, "results": results})


def merging_table(
    times: Mapping[tuple[str, tuple[int, int]], Mapping[str, Mapping[str, Timing]]],
) -> str:
    """A row for every variant, size and kind of merging, with its speed-up over the unmerged."""
    rows = []
    for (variant, (height, width)), by_run in times.items():
        for name, parts in by_run.items():
            total = parts[TOTAL]
            speed_up = by_run[NO_MERGING][TOTAL].median / total.median
            outside = parts[REST].median / (parts[REST].median + parts[ATTENTION].median)
            row = [variant, f"{height}x{width}", name, *total.milliseconds]
            rows.append([*row, f"{speed_up:.2f}x", f"{100 * outside:.0f} %"])
    text = ("variant", "size", "merging")
    headers = [*text, "ms", "quartiles", "speed-up", "outside attention"]
    return markdown_table(rows, headers, text)


def _several(parse: Callable[[str], object]) -> Callable[[str], list]:
    return lambda text: [parse(part) for part in text.split(",")]


def _one_of(accepted: Collection[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in accepted:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {', '.join(accepted)}")
        return text

    return parse


if __name__ == "__main__":
    main()
