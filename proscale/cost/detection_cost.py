"""Cost of a detector's head in closed form, for planning before any model is built.

The encoder has the layers of :mod:`proscale.cost.encoder_cost` over all levels' S tokens, the extra
ones too. With Q queries, K classes and the letters from there, around it there are

- projections: C · (channels + 5) a token, of an extra level nine times the channels;
- proposals: S · (C² + 5 C + C K), then a box MLP, Q · (2 C² + 4 C), of the best tokens;
- each layer of the decoder: positions, 3 Q C²; self-attention, Q · (4 C² + 2 Q C); cross-attention,
  S C² + Q · (C² + 3 L M P C + 4 L P C); feed-forward network, 2 Q C F; four norms, 20 Q C; classes,
  Q C K; and the box MLP, a second time but in the last layer.
"""

from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from proscale.cost.encoder_cost import (
    AFFINE_NORM,
    AffordableEncoder,
    LayerDesign,
    Level,
    affordable_layers,
    full_cost,
    interleaved_cost,
    staged_cost,
)
from proscale.modeling.detection.head import level_names
from proscale.modeling.pixel_decoders.base import coarse_to_fine
from proscale.modeling.pixel_decoders.lite_detr import InterleavingArguments
from proscale.utils.types import Size


@dataclass(frozen=True)
class DetectorDesign(LayerDesign):
    """All that the cost of DINO's head depends on, besides the encoder's layers."""

    extra: int  #: levels that are made of the backbone's coarsest one
    num_classes: int  #: K
    num_queries: int  #: Q
    dec_layers: int

    @classmethod
    def from_config(cls, cfg: CfgNode, padded_size: Size) -> "DetectorDesign":
        """Of the detector of ``cfg`` at ``padded_size`` (height, width) of the network's input."""
        head, queries, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER, cfg.MODEL.DETECTOR
        # Only strides and channels of the backbone matter: it is built without memory.
        with torch.device("meta"):
            shapes = build_backbone(cfg).output_shape()
        names = coarse_to_fine(shapes, head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES)
        sizes = [[-(-side // shapes[name].stride) for side in padded_size] for name in names]
        levels = [
            Level(prod(size), shapes[name].channels)
            for name, size in zip(names, sizes, strict=True)
        ]
        # The first extra level is made of the backbone's coarsest, the next one of the first.
        extra, size, channels = node.NUM_LEVELS - len(names), sizes[0], levels[0].channels
        for _ in range(extra):
            size = [-(-side // 2) for side in size]
            levels.insert(0, Level(prod(size), channels))
            channels = queries.HIDDEN_DIM
        return cls(
            names=level_names(names, node.NUM_LEVELS),
            levels=levels,
            width=queries.HIDDEN_DIM,
            heads=queries.NHEADS,
            points=head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            d_ffn=node.DIM_FEEDFORWARD,
            extra=extra,
            num_classes=head.NUM_CLASSES,
            num_queries=node.NUM_QUERIES,
            dec_layers=node.DEC_LAYERS,
        )

    @property
    def tokens(self) -> int:
        """S."""
        return sum(level.cells for level in self.levels)

    @property
    def queries(self) -> int:
        """Q, of a small image at most as many as tokens."""
        return min(self.num_queries, self.tokens)


def encoder_cost(design: DetectorDesign, cfg: CfgNode) -> int:
    """Multiply-adds of the encoder that ``MODEL.DETECTOR.ENCODER`` names, for one image."""
    node = cfg.MODEL.DETECTOR
    if node.ENCODER == "proscale":
        return staged_cost(design, node.PROSCALE_NUM_LAYERS)
    if node.ENCODER == "lite":
        return interleaved_cost(design, InterleavingArguments.from_config(cfg))
    return full_cost(design, node.ENC_LAYERS)


def projection_cost(design: DetectorDesign) -> int:
    """Multiply-adds of all levels' projections and their norms."""
    total = 0
    for number, level in enumerate(design.levels):
        # 3x3 convolutions make the extra levels, 1x1 convolutions project the others.
        kernel = 9 if number < design.extra else 1
        total += level.cells * design.width * (kernel * level.channels + AFFINE_NORM)
    return total


def proposal_cost(design: DetectorDesign) -> int:
    """Multiply-adds from the encoder's output to the proposals' classes and boxes."""
    width = design.width
    per_token = width**2 + AFFINE_NORM * width + width * design.num_classes
    return design.tokens * per_token + design.queries * _box_mlp(width)


def decoder_cost(design: DetectorDesign) -> int:
    """Multiply-adds of the decoder's layers and their heads."""
    width, queries = design.width, design.queries
    samples = len(design.levels) * design.points
    position = 3 * width**2
    self_attention = 4 * width**2 + 2 * queries * width
    # Offsets, two a point, weights, output; four cells sampled a point.
    cross_attention = width**2 + 3 * samples * design.heads * width + 4 * samples * width
    feed_forward = 2 * width * design.d_ffn
    norms = 4 * AFFINE_NORM * width
    # Classes, and the box MLP for the prediction and, between layers, for refinement.
    heads = width * design.num_classes + 2 * _box_mlp(width)
    per_query = position + self_attention + cross_attention + feed_forward + norms + heads
    layers = design.dec_layers * (queries * per_query + design.tokens * width**2)
    return layers - queries * _box_mlp(width)


def _box_mlp(width: int) -> int:
    return 2 * width**2 + 4 * width


def affordable_detectors(
    design: DetectorDesign, budget: float, *, full_layers: int, max_layers: int
) -> list[AffordableEncoder]:
    """PRO-SCALE's encoders with at most ``max_layers`` a stage that cost at most ``budget``, a
    fraction of ``full_layers`` layers over all levels; the cheapest first."""
    whole = full_cost(design, full_layers)
    cost = partial(staged_cost, design)
    return affordable_layers(len(design.levels), cost, budget * whole, whole, max_layers)
