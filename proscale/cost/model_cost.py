"""Cost of a model by the parts that the papers name, for an image of one size, or on average over
images that are resized as in evaluation. No pixel is read."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import ResizeShortestEdge
from torch import nn

from proscale.cost.flops import (
    DETECTION_ENCODER,
    ENCODER,
    FlopCount,
    count_flops,
    count_results,
    head_name,
    padded_size,
)
from proscale.cost.shape_tracing import build_without_weights
from proscale.data.formats.image_file import stored_size
from proscale.errors import ConfigError
from proscale.modeling import PoseEstimator
from proscale.modeling.detection.head import DetectionHead, level_names
from proscale.modeling.pixel_decoders.base import LightPixelEmbedding, PixelDecoder
from proscale.modeling.pixel_decoders.deformable_encoder import DeformableEncoderLayer
from proscale.modeling.pixel_decoders.lite_detr import InterleavedEncoder
from proscale.modeling.pixel_decoders.proscale import TokenRecalibration
from proscale.modeling.pixel_decoders.rt_detr import HybridEncoder
from proscale.utils.types import Size

BACKBONE, ENCODER_PART, TRANSFORMER_DECODER = "backbone", "encoder", "transformer decoder"
HEAD, REST, PROJECTIONS = "head", "rest of the head", "input projections"
PRODUCTS = "matrix products and convolutions"
NETWORK, RESULTS, EVERYTHING = "network", "results", "network and results"


@dataclass(frozen=True)
class MeanStd:
    """Mean and (population) standard deviation over images."""

    mean: float
    deviation: float


Number = TypeVar("Number", int, MeanStd)


@dataclass(frozen=True)
class PartCost(Generic[Number]):
    """Cost of a part for one image, or over images, on which parameters do not depend."""

    name: str  #: of the papers
    within: str  #: name of the part that it is a piece of; empty for the parts of the network
    multiply_adds: Number
    activations: Number  #: numbers that products put out
    parameters: int


@dataclass(frozen=True)
class ModelCost:
    """Cost of a model over images."""

    parts: list[PartCost[MeanStd]]  #: see :func:`list_parts`
    operators: dict[str, MeanStd]  #: multiply-adds of the network by operator
    queries: dict[str, MeanStd]  #: tokens that ask in each attention layer of the encoder, in order
    uncounted: dict[str, int]  #: calls of the operators without a count, by name, in one image

    @property
    def by_part(self) -> dict[str, PartCost[MeanStd]]:
        """The parts of the network by name, without their pieces."""
        return {part.name: part for part in self.parts if not part.within}


def average_cost(
    cfg: CfgNode, sizes: Sequence[tuple[Size, Size]], *, fused: bool = False
) -> ModelCost:
    """Average the cost of a model over images.

    Args:
        cfg: the model.
        sizes: (height, width) of each image, before padding, and of its results, pixels.
        fused: see :func:`~proscale.cost.flops.count_flops`.

    Raises:
        ValueError: no model can be built from ``cfg``.
    """
    model = build_without_weights(cfg)
    # Only results depend on more than the padded size: each padded size is traced once.
    groups = Counter((padded_size(model, image), result) for image, result in sizes)
    networks = {
        size: count_flops(model, size, fused=fused) for size in {size for size, _ in groups}
    }
    counts = [
        replace(networks[padded], results=count_results(model, padded, result))
        for padded, result in groups
    ]
    # An image counts as often as its sizes occur.
    weights = list(groups.values())

    def mean_std(values: Iterable[int]) -> MeanStd:
        numbers = np.array(list(values))
        mean = np.average(numbers, weights=weights)
        variance = np.average((numbers - mean) ** 2, weights=weights)
        return MeanStd(float(mean), float(variance**0.5))

    # Parts and operators are the same for all sizes.
    first = counts[0]
    parts = zip(*(list_parts(model, count) for count in counts), strict=True)
    return ModelCost(
        parts=[
            PartCost(
                name=same[0].name,
                within=same[0].within,
                multiply_adds=mean_std(part.multiply_adds for part in same),
                activations=mean_std(part.activations for part in same),
                parameters=same[0].parameters,
            )
            for same in parts
        ],
        operators={
            name: mean_std(count.by_operator[name] for count in counts)
            for name in first.by_operator
        },
        queries={name: mean_std(count.queries[name] for count in counts) for name in first.queries},
        uncounted=first.uncounted,
    )


def dataset_sizes(name: str, limit: int) -> list[Size]:
    """(height, width) of the first ``limit`` images of a data set, pixels.

    Raises:
        ConfigError: there is no such data set, or its files are not where it says.
    """
    if name not in DatasetCatalog:
        raise ConfigError(
            f"--dataset is {name}: expected registered ones: {', '.join(DatasetCatalog.list())}"
        )
    sizes = []
    try:
        for entry in DatasetCatalog.get(name)[:limit]:
            # Annotation files may state the size; else the image's header is read.
            if "height" in entry and "width" in entry:
                sizes.append((entry["height"], entry["width"]))
            else:
                sizes.append(stored_size(entry["file_name"]))
    except OSError as error:
        raise ConfigError(
            f"--dataset {name}: {error}; $DETECTRON2_DATASETS names the folder of the data sets"
        ) from error
    return sizes


def resize_for_test(size: Size, cfg: CfgNode) -> Size:
    """The size to which ``INPUT.MIN_SIZE_TEST`` and ``INPUT.MAX_SIZE_TEST`` resize an image; 0 for
    the first leaves it."""
    if not cfg.INPUT.MIN_SIZE_TEST:
        return size
    limits = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    height, width = ResizeShortestEdge.get_output_shape(*size, *limits)
    return height, width


def list_parts(model: nn.Module, count: FlopCount) -> list[PartCost[int]]:
    """Parts of the model that was counted, found by the kinds of its modules, in the order of the
    data, each followed by its pieces; then :data:`NETWORK`, :data:`RESULTS`, which have no
    parameters, and both together."""
    kinds = (count.by_module, count.activations, count.parameters)

    def sum_up(name: str, *modules: str, within: str = "") -> PartCost[int]:
        numbers = (sum(kind[module] for module in modules) for kind in kinds)
        return PartCost(name, within, *numbers)

    def list_pieces(
        within: str, prefix: str, groups: Mapping[str, Sequence[str]]
    ) -> list[PartCost[int]]:
        pieces = [
            sum_up(name, *(f"{prefix}.{module}" for module in modules), within=within)
            for name, modules in groups.items()
        ]
        return [piece for piece in pieces if piece.multiply_adds]

    # Stages of the backbone: children, and the members of lists among them.
    stages: dict[str, list[str]] = {}
    for name, child in model.get_submodule("backbone").named_children():
        if isinstance(child, nn.ModuleList):
            stages |= {f"{name} {number}": [f"{name}.{number}"] for number in range(len(child))}
        else:
            stages[name] = [name]
    parts = [sum_up(BACKBONE, "backbone"), *list_pieces(BACKBONE, "backbone", stages)]
    head = sum_up(HEAD, head_name(model))
    module = model.get_submodule(head_name(model))
    decoder = getattr(module, "pixel_decoder", None)
    known: list[PartCost[int]] = []
    pieces: list[PartCost[int]] = []
    if isinstance(decoder, PixelDecoder):
        # Mask2Former's head: pixel decoder (the papers' encoder) and transformer decoder.
        encoder = sum_up(ENCODER_PART, ENCODER)
        known = [encoder, sum_up(TRANSFORMER_DECODER, "sem_seg_head.predictor")]
        pieces = list_pieces(ENCODER_PART, ENCODER, _encoder_groups(decoder))
        # Between its pieces: up-sampling in RT-DETR's encoder.
        within = encoder.multiply_adds - sum(piece.multiply_adds for piece in pieces)
        if within:
            pieces.append(PartCost("up-sampling", ENCODER_PART, within, 0, 0))
    elif isinstance(module, DetectionHead):
        # A detector's: levels, encoder and decoder, with the heads of its layers.
        known = [
            sum_up(PROJECTIONS, "detection_head.input_proj"),
            sum_up(ENCODER_PART, DETECTION_ENCODER),
            sum_up(TRANSFORMER_DECODER, *_decoder_modules(module, count)),
        ]
        levels = level_names(module.in_features, len(module.input_proj))
        groups = _layer_groups(module.transformer.encoder, levels)
        pieces = list_pieces(ENCODER_PART, DETECTION_ENCODER, groups)
    for part in known:
        parts += [part, *(pieces if part.name == ENCODER_PART else [])]
    # Between them: up-sampling in the pyramid; a detector's proposals.
    rest = PartCost(
        REST if known else HEAD,
        "",
        head.multiply_adds - sum(part.multiply_adds for part in known),
        head.activations - sum(part.activations for part in known),
        head.parameters - sum(part.parameters for part in known),
    )
    if rest.multiply_adds:
        parts.append(rest)
    # fvcore calls the whole network by an empty name.
    whole = sum_up(NETWORK, "")
    network = [whole]
    if isinstance(model, PoseEstimator):
        # Published counts of pose estimation have neither norms nor resizing.
        network.append(replace(whole, name=PRODUCTS, within=NETWORK, multiply_adds=count.products))
    results = PartCost(RESULTS, "", count.results, 0, 0)
    both = count.total + count.results
    everything = PartCost(EVERYTHING, "", both, whole.activations, whole.parameters)
    return [*parts, *network, results, everything]


_HYBRID_PIECES = {
    "attention within levels": ["encoder"],
    "top-down fusion": ["lateral_convs", "fpn_blocks"],
    "bottom-up fusion": ["downsample_convs", "pan_blocks"],
}


def _encoder_groups(decoder: PixelDecoder) -> Mapping[str, list[str]]:
    """Names of the modules that make up each piece of a pixel decoder."""
    # In the order of the data: projections of the levels, …
    groups: dict[str, list[str]] = defaultdict(list)
    groups[PROJECTIONS].append("input_proj")
    for name, module in decoder.named_modules():
        if isinstance(module, TokenRecalibration):
            groups["token re-calibration"].append(name)
    # … stages, which see more and more levels (PRO-SCALE, §3), …
    groups |= _layer_groups(decoder, decoder.transformer_in_features)
    # … or attention and fusion of RT-DETR's encoder (§4.2), …
    for prefix, module in decoder.named_children():
        if isinstance(module, HybridEncoder):
            for piece, names in _HYBRID_PIECES.items():
                groups[piece] += [f"{prefix}.{name}" for name in names]
    # … and the pyramid with the mask features.
    for name, module in decoder.named_children():
        if name.startswith("adapter_"):
            groups["lateral projections"].append(name)
        elif name.startswith("layer_"):
            light = isinstance(module, LightPixelEmbedding)
            groups["light-pixel embedding" if light else "3x3 convolutions"].append(name)
    groups["mask features"].append("mask_features")
    return groups


def _layer_groups(encoder: nn.Module, levels: Sequence[str]) -> Mapping[str, list[str]]:
    """Names of the deformable layers in ``encoder`` that see the same ``levels``, coarse to fine,
    and whose tokens of the same levels ask."""
    # Of each layer how many levels it sees, and of how many the tokens ask: all but in Lite DETR.
    layers = {
        name: (module.self_attn.n_levels, module.self_attn.n_levels)
        for name, module in encoder.named_modules()
        if isinstance(module, DeformableEncoderLayer)
    }
    for module in encoder.modules():
        if isinstance(module, InterleavedEncoder):
            for (name, (seen, _)), updates_all in zip(
                list(layers.items()), module.updates_all, strict=True
            ):
                layers[name] = (seen, seen if updates_all else module.high_levels)
    groups = {}
    for kind in sorted(set(layers.values())):
        names = [name for name in layers if layers[name] == kind]
        all_seen, asking = (" + ".join(levels[:n]) for n in kind)
        title = f"{len(names)} layer{'s' * (len(names) > 1)} over {all_seen}"
        groups[title if asking == all_seen else f"{title}, of {asking}"] = names
    return groups


def _decoder_modules(head: DetectionHead, count: FlopCount) -> list[str]:
    """Names of the modules that make up a detector's decoder: layers, and their heads, which each
    layer has or all layers share, without those of the proposals."""
    heads: list[str] = []
    for name in ("class_embed", "bbox_embed"):
        own = isinstance(head.get_submodule(name), nn.ModuleList)
        numbers = range(len(head.transformer.decoder.layers)) if own else ()
        heads += [f"detection_head.{name}.{i}" for i in numbers] or [f"detection_head.{name}"]
    # A head that stands under several names is counted under the first.
    named = [name for name in heads if name in count.parameters]
    return ["detection_head.transformer.decoder", *named]
