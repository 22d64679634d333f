"""A model's parts as the papers name them, found by the kinds of its modules, with their cost."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from proscale.cost.flops import ENCODER, FlopCount
from proscale.modeling.pixel_decoders.base import LightPixelEmbedding, PixelDecoder
from proscale.modeling.pixel_decoders.deformable_encoder import DeformableEncoderLayer
from proscale.modeling.pixel_decoders.proscale import TokenRecalibration

BACKBONE, ENCODER_PART, TRANSFORMER_DECODER = "backbone", "encoder", "transformer decoder"
HEAD, REST = "head", "rest of the head"
NETWORK, RESULTS, EVERYTHING = "network", "results", "network and results"


@dataclass(frozen=True)
class ModelPart:
    """Cost of a part for one image.

    Attributes:
        name: of the papers.
        within: name of the part that it is a piece of; empty for the parts of the network.
        multiply_adds, activations, parameters: numbers of them.
    """

    name: str
    within: str
    multiply_adds: int
    activations: int
    parameters: int


def list_parts(model: nn.Module, count: FlopCount) -> list[ModelPart]:
    """Parts in the order of the data, each followed by its pieces; then :data:`NETWORK`,
    :data:`RESULTS`, which have no parameters, and both together.

    Args:
        model: that was counted.
        count: of :func:`~proscale.cost.flops.count_flops`.
    """
    backbone = model.get_submodule("backbone")
    parts = [_part(count, BACKBONE, ["backbone"])]
    parts += _pieces(count, BACKBONE, "backbone", _children(backbone))
    head = _part(count, HEAD, ["sem_seg_head"])
    decoder = getattr(model.sem_seg_head, "pixel_decoder", None)
    if isinstance(decoder, PixelDecoder):
        # Mask2Former's head: pixel decoder (the papers' encoder) and transformer decoder.
        encoder = _part(count, ENCODER_PART, [ENCODER])
        transformer = _part(count, TRANSFORMER_DECODER, ["sem_seg_head.predictor"])
        pieces = _pieces(count, ENCODER_PART, ENCODER, _encoder_groups(decoder))
        parts += [encoder, *pieces, transformer]
        # Between them: up-sampling in the pyramid.
        rest = ModelPart(
            REST,
            "",
            head.multiply_adds - encoder.multiply_adds - transformer.multiply_adds,
            head.activations - encoder.activations - transformer.activations,
            head.parameters - encoder.parameters - transformer.parameters,
        )
        if rest.multiply_adds:
            parts.append(rest)
    else:
        parts.append(head)
    # fvcore calls the whole network by an empty name.
    whole = _part(count, NETWORK, [""])
    results = ModelPart(RESULTS, "", count.results, 0, 0)
    both = count.total + count.results
    everything = ModelPart(EVERYTHING, "", both, whole.activations, whole.parameters)
    return [*parts, whole, results, everything]


def _children(module: nn.Module) -> Mapping[str, list[str]]:
    """Stages: children, and the members of lists among them."""
    groups: dict[str, list[str]] = {}
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            groups |= {f"{name} {number}": [f"{name}.{number}"] for number in range(len(child))}
        else:
            groups[name] = [name]
    return groups


def _encoder_groups(decoder: PixelDecoder) -> Mapping[str, list[str]]:
    """Names of the modules that make up each piece of a pixel decoder."""
    # In the order of the data: projections of the levels, …
    groups: dict[str, list[str]] = defaultdict(list)
    groups["input projections"].append("input_proj")
    layers = {
        name: module.self_attn.n_levels
        for name, module in decoder.named_modules()
        if isinstance(module, DeformableEncoderLayer)
    }
    for name, module in decoder.named_modules():
        if isinstance(module, TokenRecalibration):
            groups["token re-calibration"].append(name)
    # … stages, which see more and more levels (PRO-SCALE, §3), …
    for levels in sorted(set(layers.values())):
        names = [name for name in layers if layers[name] == levels]
        seen = " + ".join(decoder.transformer_in_features[:levels])
        groups[f"{len(names)} layer{'s' * (len(names) > 1)} over {seen}"] = names
    # … and the pyramid with the mask features.
    for name, module in decoder.named_children():
        if name.startswith("adapter_"):
            groups["lateral projections"].append(name)
        elif name.startswith("layer_"):
            light = isinstance(module, LightPixelEmbedding)
            groups["light-pixel embedding" if light else "3x3 convolutions"].append(name)
    groups["mask features"].append("mask_features")
    return groups


def _pieces(
    count: FlopCount, within: str, prefix: str, groups: Mapping[str, Sequence[str]]
) -> Iterator[ModelPart]:
    for name, modules in groups.items():
        piece = _part(count, name, [f"{prefix}.{module}" for module in modules], within)
        if piece.multiply_adds:
            yield piece


def _part(count: FlopCount, name: str, modules: Sequence[str], within: str = "") -> ModelPart:
    kinds = (count.by_module, count.activations, count.parameters)
    numbers = (sum(kind[module] for module in modules) for kind in kinds)
    return ModelPart(name, within, *numbers)
