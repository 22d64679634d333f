"""What DINO and Deformable DETR share: levels of a backbone, an encoder over their tokens, and the
tokens' proposals.

The encoder is that of any pixel decoder here: all levels in every layer, PRO-SCALE's stages, or
Lite DETR's interleaved blocks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.modeling.detection.boxes import propose_boxes
from proscale.modeling.detection.decoder import DeformableDecoder
from proscale.modeling.mlp import MLP
from proscale.modeling.pixel_decoders.base import (
    GROUPS,
    LevelTransformer,
    coarse_to_fine,
    project_level,
)
from proscale.modeling.pixel_decoders.deformable_encoder import (
    DeformableEncoderLayer,
    EncoderLayerArguments,
    TokenPlan,
)
from proscale.modeling.pixel_decoders.lite_detr import InterleavedEncoder, InterleavingArguments
from proscale.modeling.pixel_decoders.mask2former import DeformableEncoder
from proscale.modeling.pixel_decoders.proscale import ProgressiveEncoder
from proscale.ops.selection import largest
from proscale.utils.types import Size

# Probability of every class that the heads start with (Focal Loss, §4.1).
PRIOR = 0.01


class DetectionTransformer(LevelTransformer):
    """The encoder, and the modules that stand beside it under their published names; a head has
    some of them."""

    # Proposals, and DINO's content of the queries.
    enc_output: nn.Linear
    enc_output_norm: nn.LayerNorm
    enc_out_class_embed: nn.Linear
    enc_out_bbox_embed: MLP
    tgt_embed: nn.Embedding
    # Queries of Deformable DETR: of the proposals, or places of learned ones.
    pos_trans: nn.Linear
    pos_trans_norm: nn.LayerNorm
    reference_points: nn.Linear
    decoder: DeformableDecoder


class DetectionHead(nn.Module):
    """Base of the heads: levels, encoder and proposals.

    Args:
        input_shape: channels and stride of the backbone's levels, all of which are used.
        hidden_dim: width C, a multiple of 32.
        nheads, n_points: heads; sampling points per head and level.
        dim_feedforward: width of the feed-forward networks.
        num_levels: levels of the encoder, L. Those beyond the backbone's are made of its coarsest,
            each by a convolution of stride two.
        enc_layers: layers of all levels' tokens; ignored where there is an ``encoder``.
        encoder: takes and returns what
            :class:`~proscale.modeling.pixel_decoders.mask2former.DeformableEncoder` does.
        encoding: of positions, see
            :class:`~proscale.modeling.pixel_decoders.base.LevelTransformer`.

    Raises:
        ValueError: a number does not fit.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        hidden_dim: int,
        nheads: int,
        n_points: int,
        dim_feedforward: int,
        num_levels: int,
        enc_layers: int,
        encoder: nn.Module | None,
        encoding: Mapping[str, Any],
    ):
        super().__init__()
        if hidden_dim % GROUPS:
            raise ValueError(f"hidden_dim is {hidden_dim}: expected multiples of {GROUPS}")
        self.in_features = coarse_to_fine(input_shape, list(input_shape))
        self.strides = {name: input_shape[name].stride for name in self.in_features}
        extra = num_levels - len(self.in_features)
        if extra < 0:
            raise ValueError(
                f"num_levels is {num_levels}: expected at least the backbone's "
                f"{len(self.in_features)} levels"
            )
        # Coarse to fine: the extra levels first, the first of them made last.
        channels = [input_shape[name].channels for name in self.in_features]
        self.input_proj = nn.ModuleList(
            project_level(hidden_dim if number < extra - 1 else channels[0], hidden_dim, stride=2)
            for number in range(extra)
        )
        self.input_proj.extend(project_level(width, hidden_dim) for width in channels)
        layer = EncoderLayerArguments(hidden_dim, dim_feedforward, 0.0, nheads, n_points)
        self.transformer = DetectionTransformer(
            encoder or full_encoder(layer, num_levels, enc_layers),
            num_levels,
            hidden_dim,
            **encoding,
        )

    def encode(
        self, features: Mapping[str, Tensor], image_sizes: Sequence[Size] | None
    ) -> tuple[Tensor, TokenPlan]:
        """The encoder's output tokens (the memory) ``(B, S, C)`` and their plan; for the arguments
        see ``forward``."""
        maps, valid_shapes = self._levels(features, image_sizes)
        levels, plan = self.transformer.encode(maps, valid_shapes)
        return torch.cat(levels, dim=1), plan

    def _levels(
        self, features: Mapping[str, Tensor], image_sizes: Sequence[Size] | None
    ) -> tuple[list[Tensor], list[list[Size]]]:
        """Maps ``(B, C, H, W)`` of each level, coarse to fine; and, where images are padded, the
        size of each map's part that is the image."""
        names = self.in_features
        # The cells of every image: as many as convolutions of its own, unpadded pixels make.
        cells = [
            [tuple(-(-side // self.strides[name]) for side in size) for name in names]
            for size in image_sizes or ()
        ]
        whole = [tuple(features[name].shape[-2:]) for name in names]
        if all(sizes == whole for sizes in cells):
            return self._project([features[name] for name in names]), []
        # Each image by itself, so that norms and the extra levels do not see its padding.
        images = [
            self._project(
                [
                    features[name][number : number + 1, :, :height, :width]
                    for name, (height, width) in zip(names, sizes, strict=True)
                ]
            )
            for number, sizes in enumerate(cells)
        ]
        return [_stack(maps) for maps in zip(*images, strict=True)], [
            [(x.shape[2], x.shape[3]) for x in maps] for maps in images
        ]

    def _project(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Backbone's maps, coarse to fine, as all levels of C channels, coarse to fine."""
        extra = len(self.input_proj) - len(features)
        maps = [project(x) for project, x in zip(self.input_proj[extra:], features, strict=True)]
        # The first extra level is made of the backbone's coarsest map, a further one of that level.
        source = features[0]
        for project in reversed(self.input_proj[:extra]):
            source = project(source)
            maps.insert(0, source)
        return maps

    def propose(
        self, memory: Tensor, plan: TokenPlan, class_embed: nn.Module
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens as proposals (Deformable DETR, §A.4, two-stage).

        Returns:
            their content ``(B, S, C)``, class logits ``(B, S, K)`` and boxes ``(B or 1, S, 4)``
            before the sigmoid.
        """
        boxes, valid = propose_boxes(plan)
        # Invalid proposals have no content, and all the same logits.
        memory = memory.masked_fill(~valid[..., None], 0.0)
        content = self.transformer.enc_output_norm(self.transformer.enc_output(memory))
        return content, class_embed(content), boxes


def level_names(in_features: Sequence[str], num_levels: int) -> list[str]:
    """Names of ``num_levels`` levels, coarse to fine: ``in_features`` of the backbone, and those
    made of its coarsest, which continue its numbers: res6, res7."""
    coarsest = int(in_features[0].removeprefix("res"))
    extra = range(num_levels - len(in_features), 0, -1)
    return [*(f"res{coarsest + number}" for number in extra), *in_features]


def rank_tokens(scores: Tensor, plan: TokenPlan, count: int) -> Tensor:
    """Numbers ``(B, Q)`` of the tokens with the largest ``scores`` ``(B, S)``, in falling order;
    of a small image fewer than ``count``."""
    # Tokens of padding come last.
    if plan.padding is not None:
        scores = scores.masked_fill(plan.padding, -math.inf)
    return largest(scores, count)


def take(tokens: Tensor, numbers: Tensor) -> Tensor:
    """Rows ``numbers`` ``(B, Q)`` of ``tokens`` ``(B or 1, S, C)``: ``(B, Q, C)``."""
    tokens = tokens.expand(numbers.shape[0], -1, -1)
    return tokens.gather(1, numbers[..., None].expand(-1, -1, tokens.shape[2]))


def full_encoder(layer: EncoderLayerArguments, n_levels: int, count: int) -> DeformableEncoder:
    """``count`` layers over the tokens of all levels."""
    return DeformableEncoder([DeformableEncoderLayer(layer, n_levels) for _ in range(count)])


def build_encoder(cfg: CfgNode, layer: EncoderLayerArguments) -> nn.Module:
    """The encoder that ``MODEL.DETECTOR.ENCODER`` names."""
    node = cfg.MODEL.DETECTOR
    if node.ENCODER == "proscale":
        # Stage s sees the s coarsest levels (PRO-SCALE, §3), the extra ones first. There are no
        # mask features, and coarse tokens are not recalibrated.
        stages = [
            [DeformableEncoderLayer(layer, stage) for _ in range(count)]
            for stage, count in enumerate(node.PROSCALE_NUM_LAYERS, start=1)
        ]
        return ProgressiveEncoder(stages, token_excite=None, residual=False)
    if node.ENCODER == "lite":
        return InterleavedEncoder(layer, node.NUM_LEVELS, InterleavingArguments.from_config(cfg))
    return full_encoder(layer, node.NUM_LEVELS, node.ENC_LAYERS)


def head_arguments(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
    """Arguments of all heads of ``MODEL.DETECTOR``, by name."""
    head, queries, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER, cfg.MODEL.DETECTOR
    layer = EncoderLayerArguments(
        d_model=queries.HIDDEN_DIM,
        d_ffn=node.DIM_FEEDFORWARD,
        dropout=0.0,
        n_heads=queries.NHEADS,
        n_points=head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
    )
    names = coarse_to_fine(input_shape, head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES)
    return {
        "input_shape": {name: input_shape[name] for name in names},
        "num_classes": head.NUM_CLASSES,
        "hidden_dim": layer.d_model,
        "nheads": layer.n_heads,
        "n_points": layer.n_points,
        "dim_feedforward": layer.d_ffn,
        "num_levels": node.NUM_LEVELS,
        "enc_layers": node.ENC_LAYERS,
        "dec_layers": node.DEC_LAYERS,
        "num_queries": node.NUM_QUERIES,
        "encoder": build_encoder(cfg, layer),
    }


def class_head(width: int, num_classes: int) -> nn.Linear:
    """A linear layer to class logits, all of them rare at the start."""
    layer = nn.Linear(width, num_classes)
    nn.init.constant_(layer.bias, -math.log((1 - PRIOR) / PRIOR))
    return layer


def box_head(width: int) -> MLP:
    """An MLP to a change of boxes before the sigmoid, none at the start."""
    mlp = MLP(width, width, width, 4)
    nn.init.zeros_(mlp.last.weight)
    nn.init.zeros_(mlp.last.bias)
    return mlp


def _stack(maps: Sequence[Tensor]) -> Tensor:
    """Maps ``(1, C, h, w)`` of several images as ``(B, C, H, W)``, zeros at the right and below."""
    height, width = (max(x.shape[axis] for x in maps) for axis in (2, 3))
    return torch.cat([F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2])) for x in maps])
