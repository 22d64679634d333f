"""Cost of a pixel decoder in closed form, for planning before any model is built.

With tokens S_l of level l (coarse to fine), width C, M heads, P points, feed-forward width F, one
deformable layer over the first L levels, T = S_1 + … + S_L tokens, costs

    T · (2 C² + 3 L M P C + 4 L P C + 2 C F + 10 C)

multiply-adds: values and output; offsets (2 a point) and weights (1); four cells sampled a point;
the feed-forward network; two norms. PRO-SCALE (§3) has p_s such layers over the first s levels,
Mask2Former all of them over all levels. The rest, linear in the pixels, does not depend on p.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from proscale.modeling.pixel_decoders.base import (
    PyramidArguments,
    coarse_to_fine,
    pyramid_levels,
)
from proscale.modeling.pixel_decoders.deformable_encoder import EncoderLayerArguments
from proscale.utils.types import Size

#: Deformable layers of Mask2Former as published.
MASK2FORMER_LAYERS = 6
# Of norms, as fvcore has it: multiply-adds for each number.
_AFFINE_NORM = 5
_NORMS = {"GN": _AFFINE_NORM, "BN": 2, "SyncBN": 2, "": 0}


@dataclass(frozen=True)
class Level:
    """A level of the backbone: cells of its map, and channels."""

    cells: int
    channels: int


@dataclass(frozen=True)
class EncoderDesign:
    """All that the cost of a pixel decoder depends on, besides its layers.

    Attributes:
        levels: that the deformable encoder sees, coarse to fine.
        pyramid: the finer ones, which join top-down; the mask features have the first one's size.
        width: C. heads: M. points: P, per head and level. d_ffn: F.
        mask_dim: channels of the mask features.
        norm: of the pyramid: GN, BN, SyncBN or none ("").
        light: PRO-SCALE's Light-Pixel Embedding; else the 3x3 convolution.
        recalibration: PRO-SCALE's Token Re-Calibration.
    """

    levels: Sequence[Level]
    pyramid: Sequence[Level]
    width: int
    heads: int
    points: int
    d_ffn: int
    mask_dim: int
    norm: str
    light: bool
    recalibration: bool

    @classmethod
    def from_config(cls, cfg: CfgNode, padded_size: Size) -> "EncoderDesign":
        """Of PRO-SCALE's decoder with the backbone and widths of ``cfg``, which may have
        Mask2Former's.

        Args:
            cfg: the configuration of a model with a pixel decoder.
            padded_size: (height, width) of the network's input.

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

        def level(name: str) -> Level:
            shape = shapes[name]
            cells = prod(-(-length // shape.stride) for length in padded_size)
            return Level(cells, shape.channels)

        names = coarse_to_fine(shapes, pyramid.transformer_in_features)
        node = cfg.MODEL.PROSCALE
        return cls(
            levels=[level(name) for name in names],
            pyramid=[level(name) for name in pyramid_levels(shapes, names, pyramid.common_stride)],
            width=pyramid.conv_dim,
            heads=layer.n_heads,
            points=layer.n_points,
            d_ffn=layer.d_ffn,
            mask_dim=pyramid.mask_dim,
            norm=pyramid.norm,
            light=node.MASK_OUTPUT_OPS == "maxpool",
            recalibration=node.RECALIBRATION != "none" and node.IS_EXCITE_CONV is not None,
        )


def layer_cost(design: EncoderDesign, num_levels: int) -> int:
    """Multiply-adds of one deformable layer over the ``num_levels`` coarsest levels."""
    tokens = sum(level.cells for level in design.levels[:num_levels])
    width, samples = design.width, num_levels * design.points
    # Values and output; offsets (two a point) and weights (one) of all heads.
    projections = 2 * width**2 + 3 * samples * design.heads * width
    # Bilinear: four cells a point, each head in its own channels.
    sampling = 4 * samples * width
    feed_forward = 2 * width * design.d_ffn
    norms = 2 * _AFFINE_NORM * width
    return tokens * (projections + sampling + feed_forward + norms)


def proscale_cost(design: EncoderDesign, layers: Sequence[int]) -> int:
    """Multiply-adds of PRO-SCALE's pixel decoder for one image.

    Args:
        design: everything else.
        layers: (p1, p2, p3), layers of each stage; one number a level.

    Raises:
        ValueError: ``layers`` has another length than the levels.
    """
    if len(layers) != len(design.levels):
        raise ValueError(
            f"layers is {tuple(layers)}: expected one number for each of the encoder's "
            f"{len(design.levels)} levels"
        )
    # Stage s has p_s layers over the s coarsest levels.
    staged = sum(count * layer_cost(design, stage) for stage, count in enumerate(layers, start=1))
    return staged + _recalibration_cost(design) + _pyramid_cost(design, light=design.light)


def mask2former_cost(design: EncoderDesign, num_layers: int = MASK2FORMER_LAYERS) -> int:
    """Multiply-adds of Mask2Former's pixel decoder for one image."""
    return num_layers * layer_cost(design, len(design.levels)) + _pyramid_cost(design, light=False)


def _recalibration_cost(design: EncoderDesign) -> int:
    """The finest tokens resized to every other level, four multiply-adds a number, and a gate."""
    if not design.recalibration:
        return 0
    return sum(level.cells * (4 + 1) * design.width for level in design.levels[:-1])


def _pyramid_cost(design: EncoderDesign, *, light: bool) -> int:
    """All around the layers: input projections with norm, the pyramid, and the mask features;
    without up-sampling in the pyramid, which is counted with the head."""
    width, norm = design.width, _NORMS[design.norm]
    # A 1x1 convolution and a group norm for each level.
    inputs = sum(level.cells * width * (level.channels + _AFFINE_NORM) for level in design.levels)
    # Light-Pixel Embedding has a max-pool, which only compares, in place of the 3x3 convolution.
    convolution = 0 if light else 9 * width
    # Lateral and output convolution, each with its norm.
    pyramid = sum(
        level.cells * width * (level.channels + norm + convolution + norm)
        for level in design.pyramid
    )
    finest = [*design.levels, *reversed(design.pyramid)][-1]
    return inputs + pyramid + finest.cells * width * design.mask_dim
