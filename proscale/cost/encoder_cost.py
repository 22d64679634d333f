"""Cost of a pixel decoder in closed form, for planning before any model is built.

With tokens S_l of level l (coarse to fine), width C, M heads, P points, feed-forward width F, one
deformable layer over the first L levels, T = S_1 + … + S_L tokens, costs

    T · (2 C² + 3 L M P C + 4 L P C + 2 C F + 10 C)

multiply-adds: values and output; offsets (2 a point) and weights (1); four cells sampled a point;
the feed-forward network; two norms. PRO-SCALE (§3) has p_s such layers over the first s levels,
Mask2Former all of them over all levels. The rest, linear in the pixels, does not depend on p.
RT-M2F has convolutions in place of these layers: :func:`rt_detr_cost`.

In a layer of Lite-M2F Q of the T tokens ask: C² for the values of all, the rest for those that ask.
Key-aware attention has queries in place of the weights, C² for L M P C, and two products with the
sampled numbers, 2 L P C. A light feed-forward network of fine tokens has F = C.

Layers buy depth at each scale: the tokens of the coarsest level pass p1 + p2 + p3 layers, those of
the next p2 + p3, the finest p3. Every layer costs something, so that all configurations together
are one Pareto front; within a budget those count that no other affordable one matches at every
scale.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from proscale.modeling.pixel_decoders.base import (
    MASK_OUTPUT_OPS,
    PyramidArguments,
    coarse_to_fine,
    pyramid_levels,
)
from proscale.modeling.pixel_decoders.deformable_encoder import EncoderLayerArguments
from proscale.modeling.pixel_decoders.lite_detr import InterleavingArguments
from proscale.modeling.pixel_decoders.rt_detr import BLOCKS, HybridEncoderArguments
from proscale.utils.types import Size
from proscale.utils.whole_files import write_text

#: Deformable layers of Mask2Former as published.
MASK2FORMER_LAYERS = 6
#: Widths of RT-M2F's blocks as RT-DETR publishes them.
EXPANSIONS = (0.5, 1.0)
# Of norms, as fvcore has it: multiply-adds for each number.
AFFINE_NORM = 5
_NORMS = {"GN": AFFINE_NORM, "BN": 2, "SyncBN": 2, "": 0}


class Level(NamedTuple):
    """A level of the backbone: cells of its map, and channels."""

    cells: int
    channels: int


@dataclass(frozen=True)
class LayerDesign:
    """All that the cost of deformable layers depends on, besides their number."""

    names: Sequence[str]  #: of ``levels``
    levels: Sequence[Level]  #: that the encoder sees, coarse to fine
    width: int  #: C
    heads: int  #: M
    points: int  #: P, per head and level
    d_ffn: int  #: F


@dataclass(frozen=True)
class EncoderDesign(LayerDesign):
    """All that the cost of a pixel decoder depends on, besides its layers."""

    #: The finer levels, which join top-down; the mask features have the size of the first one.
    pyramid: Sequence[Level]
    mask_dim: int  #: channels of the mask features
    norm: str  #: of the pyramid: GN, BN, SyncBN or none ("")
    light: bool  #: PRO-SCALE's Light-Pixel Embedding; else the 3x3 convolution
    recalibration: bool  #: PRO-SCALE's Token Re-Calibration

    @classmethod
    def from_config(cls, cfg: CfgNode, padded_size: Size) -> "EncoderDesign":
        """Of PRO-SCALE's decoder with the backbone and widths of ``cfg``, which may have
        Mask2Former's, at ``padded_size`` (height, width) of the network's input.

        Raises:
            ValueError: naming a key with whose value there is no such decoder.
        """
        layer, pyramid = EncoderLayerArguments.from_config(cfg), PyramidArguments.from_config(cfg)
        if pyramid.norm not in _NORMS:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NORM is {pyramid.norm!r}: the closed form accepts "
                f"{', '.join(map(repr, _NORMS))}"
            )
        # Only strides and channels of the backbone matter: it is built without memory.
        with torch.device("meta"):
            shapes = build_backbone(cfg).output_shape()
        shapes = {name: shapes[name] for name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES}
        levels = {
            name: Level(prod(-(-side // shape.stride) for side in padded_size), shape.channels)
            for name, shape in shapes.items()
        }
        names = coarse_to_fine(shapes, pyramid.transformer_in_features)
        finer = pyramid_levels(shapes, names, pyramid.common_stride)
        node = cfg.MODEL.PROSCALE
        return cls(
            names=names,
            levels=[levels[name] for name in names],
            pyramid=[levels[name] for name in finer],
            width=pyramid.conv_dim,
            heads=layer.n_heads,
            points=layer.n_points,
            d_ffn=layer.d_ffn,
            mask_dim=pyramid.mask_dim,
            norm=pyramid.norm,
            light=node.MASK_OUTPUT_OPS == "maxpool",
            recalibration=node.RECALIBRATION != "none" and node.IS_EXCITE_CONV is not None,
        )


def layer_cost(
    design: LayerDesign,
    num_levels: int,
    *,
    query_levels: int | None = None,
    key_aware: bool = False,
    light_from: int | None = None,
) -> int:
    """Multiply-adds of one deformable layer over the ``num_levels`` coarsest levels.

    Args:
        design: widths and levels.
        num_levels: whose tokens are values.
        query_levels: whose tokens ask, the coarsest ones; None for all.
        key_aware: attention is key-aware.
        light_from: the level from which on feed-forward networks have width C; None for no level.
    """
    cells = [level.cells for level in design.levels[:num_levels]]
    asking = sum(cells[:query_levels])
    light = 0 if light_from is None else sum(cells[light_from:query_levels])
    width, samples = design.width, num_levels * design.points
    # Values of all tokens; then output and offsets, two a point, of all heads of those that ask.
    values = sum(cells) * width**2
    projections = width**2 + 2 * samples * design.heads * width
    # Weights, one a point; or queries, and their products with keys and of weights with values.
    if key_aware:
        projections += width**2 + 2 * samples * width
    else:
        projections += samples * design.heads * width
    # Bilinear: four cells a point, each head in its own channels.
    sampling = 4 * samples * width
    norms = 2 * AFFINE_NORM * width
    feed_forward = 2 * width * ((asking - light) * design.d_ffn + light * width)
    return values + asking * (projections + sampling + norms) + feed_forward


def staged_cost(design: LayerDesign, layers: Sequence[int]) -> int:
    """Multiply-adds of the layers of PRO-SCALE's encoder for one image, ``layers`` (p1, p2, …), one
    number a level.

    Raises:
        ValueError: ``layers`` has another length than the levels.
    """
    if len(layers) != len(design.levels):
        raise ValueError(
            f"layers is {tuple(layers)}: expected one number for each of the encoder's "
            f"{len(design.levels)} levels"
        )
    # Stage s has p_s layers over the s coarsest levels.
    return sum(count * layer_cost(design, stage) for stage, count in enumerate(layers, start=1))


def full_cost(design: LayerDesign, num_layers: int) -> int:
    """The same of ``num_layers`` over all levels."""
    return num_layers * layer_cost(design, len(design.levels))


def interleaved_cost(design: LayerDesign, order: InterleavingArguments) -> int:
    """The same of Lite DETR's encoder."""
    return sum(
        # The last layer of a block updates all tokens, the others those of the high levels.
        layer_cost(
            design,
            len(design.levels),
            query_levels=None if updates_all else order.num_high_levels,
            key_aware=order.key_aware,
            light_from=order.num_high_levels if order.small_ffn else None,
        )
        for updates_all in order.updates_all
    )


def proscale_cost(design: EncoderDesign, layers: Sequence[int]) -> int:
    """Multiply-adds of PRO-SCALE's pixel decoder for one image, see :func:`staged_cost`."""
    # The finest tokens resized to every other level, four multiply-adds a number, and a gate.
    gated = sum(level.cells for level in design.levels[:-1]) if design.recalibration else 0
    recalibration = gated * (4 + 1) * design.width
    pyramid = _pyramid_cost(design, light=design.light)
    return staged_cost(design, layers) + recalibration + pyramid


def mask2former_cost(design: EncoderDesign, num_layers: int = MASK2FORMER_LAYERS) -> int:
    """Multiply-adds of Mask2Former's pixel decoder for one image."""
    return full_cost(design, num_layers) + _pyramid_cost(design, light=False)


def rt_detr_cost(
    design: EncoderDesign, encoder: HybridEncoderArguments, *, fused: bool = False
) -> int:
    """Multiply-adds of RT-M2F's pixel decoder for one image.

    ``fused`` counts its encoder as one convolution for each norm and each pair of branches, see
    :func:`~proscale.ops.fused.fuse_for_inference`. The width of ``encoder`` is that of ``design``.
    """
    width, hidden = design.width, encoder.hidden_dim
    norm = 0 if fused else _NORMS["BN"]
    cells = [level.cells for level in design.levels]
    # Layers of attention: four projections, products with keys and values, feed-forward network.
    attention = 0
    for name in encoder.attended:
        tokens = cells[design.names.index(name)]
        projections = 4 * width**2 + 2 * width * encoder.d_ffn + 2 * AFFINE_NORM * width
        attention += encoder.num_layers * tokens * (projections + 2 * tokens * width)
    # A CSP block, for each cell: two 1x1 convolutions of both maps, the RepVGG blocks, and a 1x1
    # convolution back where it is needed.
    rep_vgg = hidden * (9 * hidden if fused else 10 * hidden + 2 * norm)
    block = 2 * hidden * (2 * width + norm) + BLOCKS * rep_vgg
    if hidden != width:
        block += width * (hidden + norm)
    # Down, at the finer size of each pair: a block, and up-sampling, one multiply-add a number; the
    # lateral 1x1 convolution at the coarser size. Up, at the coarser size: the 3x3 convolution of
    # stride two, and a block.
    down = sum(cells[1:]) * (block + width) + sum(cells[:-1]) * width * (width + norm)
    up = sum(cells[:-1]) * (width * (9 * width + norm) + block)
    return attention + down + up + _pyramid_cost(design, light=design.light, input_norm=norm)


def lite_cost(design: EncoderDesign, order: InterleavingArguments, *, mask_output_ops: str) -> int:
    """Multiply-adds of Lite-M2F's pixel decoder for one image."""
    pyramid = _pyramid_cost(design, light=mask_output_ops == "maxpool")
    return interleaved_cost(design, order) + pyramid


def _pyramid_cost(design: EncoderDesign, *, light: bool, input_norm: int = AFFINE_NORM) -> int:
    """All around the layers: input projections with norm, the pyramid, and the mask features;
    without up-sampling in the pyramid, which is counted with the head."""
    width, norm = design.width, _NORMS[design.norm]
    # A 1x1 convolution and a norm for each level, which is a group norm but in RT-M2F.
    inputs = sum(level.cells * width * (level.channels + input_norm) for level in design.levels)
    # Light-Pixel Embedding has a max-pool, which only compares, in place of the 3x3 convolution.
    convolution = 0 if light else 9 * width
    # Lateral and output convolution, each with its norm.
    pyramid = sum(
        level.cells * width * (level.channels + norm + convolution + norm)
        for level in design.pyramid
    )
    finest = [*design.levels, *reversed(design.pyramid)][-1]
    return inputs + pyramid + finest.cells * width * design.mask_dim


@dataclass(frozen=True)
class AffordableEncoder:
    """An encoder within the budget."""

    layers: tuple[int, ...]  #: (p1, p2, p3)
    multiply_adds: int  #: of its pixel decoder, or a detector's encoder, one image
    share: float  #: them as a fraction of those of Mask2Former's, or the full encoder's

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers that the tokens of each level pass, coarse to fine."""
        # Level l takes part from stage l on: sums from the last stage back.
        return tuple(reversed(list(accumulate(reversed(self.layers)))))


def affordable(design: EncoderDesign, budget: float, *, max_layers: int) -> list[AffordableEncoder]:
    """All encoders with at least one layer, and at most ``max_layers`` a stage, that cost at most
    ``budget``, a fraction of the cost of Mask2Former's pixel decoder; the cheapest first."""
    whole = mask2former_cost(design)
    cost = partial(proscale_cost, design)
    return affordable_layers(len(design.levels), cost, budget * whole, whole, max_layers)


def affordable_layers(
    num_levels: int,
    cost: Callable[[Sequence[int]], int],
    budget: float,
    whole: int,
    max_layers: int,
) -> list[AffordableEncoder]:
    """All encoders of ``num_levels`` stages, at most ``max_layers`` each, whose ``cost`` is at most
    ``budget``, multiply-adds; shares are of ``whole``; the cheapest first."""
    found = []
    for layers in product(range(max_layers + 1), repeat=num_levels):
        # Without any layer there is no encoder.
        if any(layers) and (multiply_adds := cost(layers)) <= budget:
            found.append(AffordableEncoder(layers, multiply_adds, multiply_adds / whole))
    return sorted(found, key=lambda candidate: (candidate.multiply_adds, candidate.layers))


def pareto_front(candidates: Sequence[AffordableEncoder]) -> list[AffordableEncoder]:
    """Those whose depths no other candidate matches or exceeds at every scale."""
    return [
        candidate
        for candidate in candidates
        if not any(
            other.depths != candidate.depths
            and all(more >= mine for more, mine in zip(other.depths, candidate.depths, strict=True))
            for other in candidates
        )
    ]


@dataclass(frozen=True)
class AffordableHybrid:
    """A variant of RT-M2F within the budget."""

    expansion: float  #: ``MODEL.RT_DETR_ENCODER.EXPANSION``
    mask_output_ops: str  #: ``MODEL.PROSCALE.MASK_OUTPUT_OPS``
    multiply_adds: int  #: of its pixel decoder, one image
    share: float  #: them as a fraction of those of Mask2Former's pixel decoder


def affordable_hybrids(
    design: EncoderDesign, encoder: HybridEncoderArguments, budget: float
) -> list[AffordableHybrid]:
    """The variants of RT-M2F that cost at most ``budget``, see :func:`affordable`, with all else as
    in ``encoder``; the cheapest first."""
    whole = mask2former_cost(design)
    found = []
    for expansion, operation in product(EXPANSIONS, MASK_OUTPUT_OPS):
        variant = replace(design, light=operation == "maxpool")
        cost = rt_detr_cost(variant, replace(encoder, expansion=expansion))
        if cost <= budget * whole:
            found.append(AffordableHybrid(expansion, operation, cost, cost / whole))
    return sorted(found, key=lambda one: one.multiply_adds)


@dataclass(frozen=True)
class AffordableLite:
    """An order of Lite-M2F's layers within the budget."""

    num_layers: int  #: ``MODEL.LITE_DETR.NUM_LAYERS``: updates of the high-level tokens
    num_blocks: int  #: ``MODEL.LITE_DETR.NUM_BLOCKS``: updates of the fine tokens
    mask_output_ops: str  #: ``MODEL.PROSCALE.MASK_OUTPUT_OPS``
    multiply_adds: int  #: of its pixel decoder, one image
    share: float  #: them as a fraction of those of Mask2Former's pixel decoder


def affordable_lite(
    design: EncoderDesign, order: InterleavingArguments, budget: float, *, max_layers: int
) -> list[AffordableLite]:
    """The orders of at most ``max_layers`` layers that cost at most ``budget``, see
    :func:`affordable`, with all else as in ``order``, without those of which another one has at
    least as many updates of all tokens with the same mask features; the cheapest first."""
    whole = mask2former_cost(design)
    found = []
    for num_layers, num_blocks in product(range(1, max_layers + 1), repeat=2):
        if num_layers % num_blocks:
            continue
        variant = replace(order, num_layers=num_layers, num_blocks=num_blocks)
        for operation in MASK_OUTPUT_OPS:
            cost = lite_cost(design, variant, mask_output_ops=operation)
            if cost <= budget * whole:
                one = AffordableLite(num_layers, num_blocks, operation, cost, cost / whole)
                found.append(one)
    front = [
        one
        for one in found
        if not any(
            (other.num_layers, other.num_blocks) != (one.num_layers, one.num_blocks)
            and other.num_layers >= one.num_layers
            and other.num_blocks >= one.num_blocks
            and other.mask_output_ops == one.mask_output_ops
            for other in found
        )
    ]
    return sorted(front, key=lambda one: one.multiply_adds)


def write_config(file: Path, base: Path, model: Mapping[str, Any]) -> None:
    """Write the YAML file of a model with the keys ``model`` of ``MODEL``, all else as in
    ``base``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {
        # Relative, so that both files can move together.
        "_BASE_": os.path.relpath(base.resolve(), file.parent.resolve()),
        "MODEL": dict(model),
    }
    write_text(file, yaml.safe_dump(document, sort_keys=False, default_flow_style=None))
