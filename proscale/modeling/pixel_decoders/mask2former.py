"""Mask2Former's pixel decoder: every deformable layer sees all levels' tokens (§3.2.1, §A)."""

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from proscale.modeling.pixel_decoders.base import PixelDecoder, PyramidArguments
from proscale.modeling.pixel_decoders.deformable_encoder import (
    DeformableEncoderLayer,
    EncoderLayerArguments,
    TokenPlan,
)


class DeformableEncoder(nn.Module):
    """Layers over the tokens of all levels; none of them passes the tokens through."""

    def __init__(self, layers: Sequence[DeformableEncoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, levels: Sequence[Tensor], plan: TokenPlan) -> list[Tensor]:
        """``levels``: ``(B, H·W, C)`` each, coarse to fine; returns the same shapes."""
        # All levels' tokens in one sequence (B, S, C), S = Σ H·W, in every layer.
        tokens = torch.cat(list(levels), dim=1)
        for layer in self.layers:
            tokens = layer(tokens, plan)
        # Back to the levels, (B, H·W, C) each.
        return list(tokens.split(plan.lengths, dim=1))


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(PixelDecoder):
    """Mask2Former's multi-scale deformable pixel decoder: ``num_layers`` layers of all levels."""

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_layers: int,
        layer: EncoderLayerArguments,
        pyramid: PyramidArguments,
    ):
        if num_layers < 0:
            raise ValueError(f"num_layers is {num_layers}: expected whole numbers from 0")
        n_levels = len(pyramid.transformer_in_features)
        # Every layer sees all levels, which is what PRO-SCALE changes.
        layers = [DeformableEncoderLayer(layer, n_levels) for _ in range(num_layers)]
        super().__init__(input_shape, pyramid, encoder=DeformableEncoder(layers))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        return {
            "input_shape": input_shape,
            "num_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "layer": EncoderLayerArguments.from_config(cfg),
            "pyramid": PyramidArguments.from_config(cfg),
        }
