"""What token merging does to a trained model: quality, agreement, multiply-adds and time.

The same weights run with every preset of SegFormer++ and with halved images, in turns on the same
images of a data set (Kienzle et al., SegFormer++, 2024, table I, without retraining).
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from proscale.benchmark.latency import Stopwatch, Timing, device_clock, measure_parts
from proscale.benchmark.merging_benchmark import DOWNSAMPLE
from proscale.benchmark.model_benchmark import lap_after
from proscale.cost.flops import count_flops
from proscale.cost.parts import BACKBONE
from proscale.evaluation.semantic_evaluator import SemanticEvaluator
from proscale.modeling import SlidingWindow, with_sliding_window
from proscale.modeling.backbones.token_merging_config import NO_MERGING, PRESETS

VARIANTS = (*PRESETS, DOWNSAMPLE)
"""What is compared; the first one is what the others are compared with."""
REST = "rest"


@dataclass(frozen=True)
class MergingResult:
    """A variant on a data set.

    Attributes:
        metrics: of the data set, percent, by name: ``mIoU`` and others.
        agreement: percent of all pixels that get the class that they get without merging.
        multiply_adds: of the network for one image.
        times: of one image, by :data:`BACKBONE`, :data:`REST` (pre-processing, head, results) and
            :data:`~proscale.benchmark.latency.TOTAL`.
    """

    metrics: Mapping[str, float]
    agreement: float
    multiply_adds: int
    times: Mapping[str, Timing]


class MergedModel:
    """A trained model that runs as any of :data:`VARIANTS`.

    Args:
        cfg: a model with the backbone ``MixVisionTransformer``; its own token merging is not used.
        load: loads the weights into a model.

    Raises:
        ValueError: the backbone is another one, the model makes no semantic results, or no model
            can be built from ``cfg``.
    """

    def __init__(self, cfg: CfgNode, load: Callable[[nn.Module], object]):
        if cfg.MODEL.BACKBONE.NAME != "MixVisionTransformer":
            raise ValueError(
                f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}: expected MixVisionTransformer, "
                "which merges tokens"
            )
        is_mask_former = cfg.MODEL.META_ARCHITECTURE == "MaskFormer"
        if is_mask_former and not cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON:
            raise ValueError(
                "MODEL.MASK_FORMER.TEST.SEMANTIC_ON is False: expected True, because mIoU is "
                "compared"
            )
        self.model = _build(cfg, downsample=False)
        load(self.model)
        # Strides differ, so that it is another model, with the same weights.
        self._halved = _build(cfg, downsample=True)
        self._halved.load_state_dict(self.model.state_dict())
        self._cfg = cfg

    def variant(self, name: str) -> nn.Module:
        """The network as one of :data:`VARIANTS`, until another one is asked for."""
        if name == DOWNSAMPLE:
            return self._halved
        self.model.backbone.set_token_merging(name)
        return self.model

    def segmenter(self, name: str) -> nn.Module:
        """:meth:`variant` as it is evaluated, by windows or on whole images."""
        return with_sliding_window(self._cfg, self.variant(name))


@torch.no_grad()
def compare_merging(
    merged: MergedModel, loader: Iterable[list[dict]], dataset_name: str, *, repeats: int
) -> dict[str, MergingResult]:
    """Run all variants on a data set; times are those of its first image.

    Args:
        merged: the model.
        loader: batches of one image of the data set, as a test loader gives them.
        dataset_name: its registered name.
        repeats: calls that count, of each variant.

    Raises:
        ValueError: the data set is empty.
    """
    evaluators = {name: SemanticEvaluator(dataset_name) for name in VARIANTS}
    agreeing, pixels, first = dict.fromkeys(VARIANTS, 0), 0, None
    for batch in loader:
        first = batch if first is None else first
        unmerged = None
        for name in VARIANTS:
            outputs = merged.segmenter(name)(batch)
            evaluators[name].process(batch, outputs)
            labels = _labels(outputs[0]["sem_seg"])
            unmerged = labels if unmerged is None else unmerged
            agreeing[name] += (labels == unmerged).sum().item()
        pixels += unmerged.numel()
    if first is None:
        raise ValueError(f"data set {dataset_name} has no images")

    times = _measure(merged, first, repeats=repeats)
    size = tuple(first[0]["image"].shape[-2:])
    return {
        name: MergingResult(
            metrics=evaluators[name].evaluate()["sem_seg"],
            agreement=100 * agreeing[name] / pixels,
            multiply_adds=multiply_adds(merged, name, size),
            times=times[name],
        )
        for name in VARIANTS
    }


def _build(cfg: CfgNode, *, downsample: bool) -> nn.Module:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MIT.DOWNSAMPLE = downsample
    cfg.MODEL.MIT.TOKEN_MERGING = NO_MERGING
    return build_model(cfg).eval()


def _labels(scores: Tensor) -> Tensor:
    """``(H, W)`` from scores ``(K, H, W)`` or labels."""
    return scores.argmax(dim=0) if scores.ndim == 3 else scores


def _measure(
    merged: MergedModel, batch: list[dict], *, repeats: int
) -> dict[str, dict[str, Timing]]:
    def timed(name: str) -> Callable[[Stopwatch], None]:
        def call(watch: Stopwatch) -> None:
            segmenter, network = merged.segmenter(name), merged.variant(name)
            with _lapped(network.backbone, watch):
                segmenter(batch)
            watch.lap(REST)

        return call

    return measure_parts(
        {name: timed(name) for name in VARIANTS},
        repeats=repeats,
        warmup=0,  # all of them ran just now
        clock=device_clock(merged.model.device),
    )


@contextmanager
def _lapped(backbone: nn.Module, watch: Stopwatch) -> AbstractContextManager[None]:
    with ExitStack() as hooks:
        before = backbone.register_forward_pre_hook(lap_after(watch, REST))
        hooks.callback(before.remove)
        after = backbone.register_forward_hook(lap_after(watch, BACKBONE))
        hooks.callback(after.remove)
        yield


def multiply_adds(merged: MergedModel, name: str, size: tuple[int, int]) -> int:
    """Of the network as the variant ``name``, for an image of ``size`` (height, width) pixels; by
    windows, that of all of them."""
    segmenter = merged.segmenter(name)
    sizes = [size]
    if isinstance(segmenter, SlidingWindow):
        rows, columns = segmenter.windows(*size)
        sizes = [
            (bottom - top, right - left) for (top, bottom), (left, right) in product(rows, columns)
        ]
    network = merged.variant(name)
    counts = {size: count_flops(network, size).total for size in set(sizes)}
    return sum(counts[size] for size in sizes)
