"""Speed of Mix Transformers with merged tokens: every preset, in turns with the unmerged model."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from proscale.benchmark.latency import Timing, device_clock, measure
from proscale.modeling.backbones.mit import VARIANTS, MixVisionTransformer
from proscale.modeling.backbones.token_merging_config import NO_MERGING, PRESETS

#: The unmerged model whose attention holds its whole matrix, as SegFormer++ measured.
MATRIX = "none, matrix attention"
#: The model on images of half the size.
DOWNSAMPLE = "downsample"
RUNS = (*PRESETS, DOWNSAMPLE, MATRIX)
WARMUP = 1


@dataclass(frozen=True)
class MergingSettings:
    """What is timed.

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
) -> dict[str, Timing]:
    """Time the backbone alone on one image, :data:`NO_MERGING` first.

    Args:
        settings: see :class:`MergingSettings`.
        runs: of :data:`RUNS`.
        repeats: calls that count, of each.
    """
    backbone, halving = (_build(settings, downsample) for downsample in (False, True))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, *settings.size, generator=generator).to(settings.device)

    def call(run: str) -> Callable[[], object]:
        model = halving if run == DOWNSAMPLE else backbone
        merging = run if run in PRESETS else NO_MERGING

        def forward() -> dict[str, Tensor]:
            model.set_token_merging(merging)
            attention = sdpa_kernel(SDPBackend.MATH) if run == MATRIX else nullcontext()
            with torch.inference_mode(), attention, _precision(settings):
                return model(image)

        return forward

    calls = {run: call(run) for run in dict.fromkeys((NO_MERGING, *runs))}
    return measure(calls, repeats=repeats, warmup=WARMUP, clock=device_clock(settings.device))


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
