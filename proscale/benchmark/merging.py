"""A trained model with every kind of token merging: quality, agreement, multiply-adds and time.

The same weights run with every preset of SegFormer++ and, of a semantic model, with halved images,
in turns on the same images of a data set (Kienzle et al., SegFormer++, 2024, table I, without
retraining).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from matplotlib.figure import Figure
from torch import Tensor, nn

from proscale.benchmark.agreement import PoseAgreement, SemanticAgreement
from proscale.benchmark.latency import Stopwatch, Timing, device_clock, measure_parts
from proscale.cost.flops import count_flops
from proscale.cost.model_cost import BACKBONE
from proscale.errors import ConfigError, DataError
from proscale.modeling import SlidingWindow, with_sliding_window
from proscale.modeling.backbones import MixVisionTransformer
from proscale.modeling.backbones.token_merging_config import NO_MERGING, PRESETS
from proscale.utils.types import Size
from proscale.utils.whole_files import whole_file

#: The model on images of half the size.
DOWNSAMPLE = "downsample"
VARIANTS = (*PRESETS, DOWNSAMPLE)
"""The variants that are compared, the last one of semantic models alone; the first one is
unmerged."""
REST = "rest"

QUERIES, KEYS_AND_VALUES = "queries", "keys and values"
_OPACITY = 0.6
_PANEL_WIDTH = 5.0  # inches


@dataclass(frozen=True)
class MergingResult:
    """A variant on a data set."""

    metrics: Mapping[str, float]  #: of the data set, percent, by name: ``mIoU`` and others
    agreement: float  #: percent of all pixels or keypoints that are as without merging
    multiply_adds: int  #: of the network for one image or person, in one pass
    #: Of one image or person: ``BACKBONE``, ``REST`` (pre-processing, head, results) and ``TOTAL``.
    times: Mapping[str, Timing]


class MergedModel:
    """A trained model that runs as any of its ``variants``, see :data:`VARIANTS`.

    Args:
        cfg: a model with the backbone ``MixVisionTransformer``; its own token merging is not used.
        load: loads the weights into a model.

    Raises:
        ConfigError: the backbone is another one, or the model makes no semantic results.
        ValueError: no model can be built from ``cfg``.
    """

    def __init__(self, cfg: CfgNode, load: Callable[[nn.Module], object]):
        if cfg.MODEL.BACKBONE.NAME != "MixVisionTransformer":
            raise ConfigError(
                f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}: expected MixVisionTransformer, "
                "which merges tokens"
            )
        kind = cfg.MODEL.META_ARCHITECTURE
        if kind == "MaskFormer" and not cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON:
            raise ConfigError(
                "MODEL.MASK_FORMER.TEST.SEMANTIC_ON is False: expected True, because mIoU is "
                "compared"
            )
        # Merging has no weights: presets are switched in one model. Halved images, with other
        # strides, take another model of the same weights.
        self.cfg, self.device = cfg, torch.device(cfg.MODEL.DEVICE)
        self.is_pose = kind == "PoseEstimator"
        self.model = self._build(downsample=False)
        load(self.model)
        # Heatmaps of halved crops are no targets that a pose estimator was trained for.
        self.variants = tuple(PRESETS) if self.is_pose else VARIANTS
        self._halved: nn.Module | None = None
        if not self.is_pose:
            self._halved = self._build(downsample=True)
            self._halved.load_state_dict(self.model.state_dict())

    def variant(self, name: str) -> nn.Module:
        """The network as one of ``variants``, until another one is asked for."""
        if name == DOWNSAMPLE:
            assert self._halved is not None  # that of a semantic model
            return self._halved
        backbone = self.model.get_submodule("backbone")
        assert isinstance(backbone, MixVisionTransformer)
        backbone.set_token_merging(name)
        return self.model

    def segmenter(self, name: str) -> nn.Module:
        """:meth:`variant` as it is evaluated, by windows or on whole images."""
        return with_sliding_window(self.cfg, self.variant(name))

    def agreement(self, dataset_name: str) -> SemanticAgreement | PoseAgreement:
        """What measures the quality and the agreement of the variants."""
        if self.is_pose:
            return PoseAgreement(self.cfg, dataset_name, self.variants)
        return SemanticAgreement(dataset_name, self.variants)

    def _build(self, downsample: bool) -> nn.Module:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.MIT.DOWNSAMPLE, cfg.MODEL.MIT.TOKEN_MERGING = downsample, NO_MERGING
        return build_model(cfg).eval()


@torch.no_grad()
def compare_merging(
    merged: MergedModel, loader: Iterable[list[dict]], dataset_name: str, *, repeats: int
) -> dict[str, MergingResult]:
    """Run all variants on a data set; times are those of its first image or person.

    Args:
        merged: the model.
        loader: batches of one image, or of one person, of the data set ``dataset_name``, as a test
            loader gives them.
        repeats: calls that count, of each variant.

    Raises:
        DataError: the data set is empty.
    """
    agreement = merged.agreement(dataset_name)
    first = None
    for batch in loader:
        first = first or batch
        # In turns on every image; the unmerged variant is the first.
        agreement.add(batch, {name: merged.segmenter(name)(batch) for name in merged.variants})
    if first is None:
        raise DataError(f"data set {dataset_name} has no images")

    def call(name: str, watch: Stopwatch) -> None:
        segmenter = merged.segmenter(name)
        backbone = merged.variant(name).get_submodule("backbone")
        # Pre-processing, backbone, then head and results.
        with (
            backbone.register_forward_pre_hook(watch.hook(REST)),
            backbone.register_forward_hook(watch.hook(BACKBONE)),
        ):
            segmenter(first)
        watch.lap(REST)

    # Time and cost of the first image stand for all. No warm-up: all of them ran just now.
    calls = {name: partial(call, name) for name in merged.variants}
    times = measure_parts(calls, repeats=repeats, warmup=0, clock=device_clock(merged.device))
    height, width = first[0]["image"].shape[-2:]
    return {
        name: MergingResult(
            *agreement.result(name),
            multiply_adds=multiply_adds(merged, name, (height, width)),
            times=times[name],
        )
        for name in merged.variants
    }


def multiply_adds(merged: MergedModel, name: str, size: Size) -> int:
    """Of the network as the variant ``name``, for an image of ``size`` (height, width) pixels; by
    windows, that of all of them."""
    segmenter, network = merged.segmenter(name), merged.variant(name)
    sizes = Counter([size])
    if isinstance(segmenter, SlidingWindow):
        rows, columns = ([end - start for start, end in axis] for axis in segmenter.windows(*size))
        sizes = Counter(product(rows, columns))
    # Windows of equal size cost the same.
    return sum(count_flops(network, size).total * number for size, number in sizes.items())


@dataclass(frozen=True)
class MergedMap:
    """The tokens of a stage's first block."""

    stage: int  #: from 1
    side: str  #: :data:`QUERIES` or :data:`KEYS_AND_VALUES`
    owners: np.ndarray  #: ``(h, w)`` integers: tokens of equal number are merged into one

    @property
    def length(self) -> int:
        """Tokens after merging."""
        return len(np.unique(self.owners))


@torch.no_grad()
def merged_maps(model: nn.Module, sample: dict) -> list[MergedMap]:
    """Run a model on a whole image and note the tokens that the first block of every stage merges.

    Args:
        model: with the backbone ``MixVisionTransformer``.
        sample: what the model takes of an image or a person.

    Returns:
        the maps of the padded image in the order of the stages, without those in which every token
        stays alone.
    """
    maps: list[MergedMap] = []

    def record(stage: int, side: str, match: Callable, tokens: Tensor, size: Size) -> object:
        matching = match(tokens, size)
        length = matching.merge(tokens).shape[1]
        # Un-merging copies tokens; copying their numbers shows the sources. Exact in float32 below
        # 2**24 tokens.
        numbers = torch.arange(length, dtype=torch.float32, device=tokens.device)
        owners = matching.unmerge(numbers.expand(len(tokens), length)[..., None])[0, :, 0]
        maps.append(MergedMap(stage, side, owners.long().view(size).cpu().numpy()))
        return matching

    def record_block(stage: int, _block: nn.Module, arguments: tuple) -> tuple:
        # A block gets the functions that plan its merging as arguments.
        x, size, match_query, match_key_value = arguments
        queries = partial(record, stage, QUERIES, match_query)
        return x, size, queries, partial(record, stage, KEYS_AND_VALUES, match_key_value)

    with ExitStack() as hooks:
        for number, stage in enumerate(model.get_submodule("backbone.stages").children(), 1):
            block = stage.get_submodule("blocks.0")
            hooks.enter_context(block.register_forward_pre_hook(partial(record_block, number)))
        model([sample])
    return [merged for merged in maps if merged.length < merged.owners.size]


def draw_merged_tokens(
    path: Path, image: np.ndarray, maps: Mapping[str, list[MergedMap]], *, padded_size: Size
) -> None:
    """Draw every map over the image: tokens that are merged into one have one colour and are
    enclosed by a white line; tokens that stay alone show the image.

    Args:
        path: file to write; its suffix is a picture format's.
        image: ``(H, W, 3)`` uint8 RGB.
        maps: by row of the picture, a panel each.
        padded_size: (height, width) of the image that the maps belong to, pixels.
    """
    columns = max(len(row) for row in maps.values())
    height = _PANEL_WIDTH * image.shape[0] / image.shape[1] + 0.35
    figure = Figure(figsize=(columns * _PANEL_WIDTH, len(maps) * height), layout="constrained")
    axes = figure.subplots(len(maps), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, (name, row_maps) in zip(axes, maps.items(), strict=True):
        for axis, merged in zip(row, row_maps, strict=False):
            title = f"{name}, stage {merged.stage}, {merged.side}: "
            axis.set_title(f"{title}{merged.owners.size} → {merged.length}", fontsize=9)
            axis.imshow(_overlay(image, merged.owners, padded_size))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        figure.savefig(partial, dpi=100)


def _overlay(image: np.ndarray, owners: np.ndarray, padded_size: Size) -> np.ndarray:
    """``(H, W, 3)`` float in [0, 1]."""
    # The token of each row and column of pixels; the padding is cropped.
    rows, columns = (
        np.arange(length) * tokens // padded
        for length, tokens, padded in zip(image.shape[:2], owners.shape, padded_size, strict=True)
    )
    _, number, count = np.unique(owners, return_inverse=True, return_counts=True)
    colors = np.random.default_rng(0).uniform(0.1, 1.0, (len(count), 3))
    number = number.reshape(owners.shape)[np.ix_(rows, columns)]
    is_merged = (count > 1)[number]

    # A colour for each token that others were merged into.
    picture = image / 255
    picture[is_merged] *= 1 - _OPACITY
    picture[is_merged] += _OPACITY * colors[number[is_merged]]
    # A white line where a pixel belongs to another token than its neighbour.
    border = np.zeros(number.shape, dtype=bool)
    border[:, 1:] |= number[:, 1:] != number[:, :-1]
    border[1:] |= number[1:] != number[:-1]
    picture[border & is_merged] = 1.0
    return picture
