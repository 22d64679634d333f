"""PRO-SCALE's pixel decoder: an encoder whose token length grows with depth (PRO-SCALE, §3).

The first layers see the coarsest level alone, each further stage adds the next finer level, and
only the last stage pays for the finest one.
"""

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from proscale.modeling.pixel_decoders.base import PixelDecoder
from proscale.modeling.pixel_decoders.config import encoder_arguments, frame_arguments
from proscale.modeling.pixel_decoders.deformable_encoder import DeformableEncoderLayer, TokenPlan
from proscale.modeling.pixel_decoders.recalibration import LAYOUTS, TokenRecalibration

MASK_OUTPUT_OPS = ("maxpool", "conv")


class ProgressiveEncoder(nn.Module):
    """Stages of deformable layers; stage s sees the s coarsest levels.

    A stage without layers still hands its level, recalibrated, to the next stage.

    Args:
        stages: the layers of each stage, one stage a level.
        token_excite: recalibrates every level but the finest as it enters; None leaves them.
        residual: add a stage's input, as recalibrated, to each of its layers' output, in every
            stage but the last.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[DeformableEncoderLayer]],
        *,
        token_excite: TokenRecalibration | None,
        residual: bool,
    ):
        super().__init__()
        self.layers = nn.ModuleList(layer for stage in stages for layer in stage)
        self.num_layers = [len(stage) for stage in stages]
        self.token_excite = token_excite
        self.residual = residual

    def forward(self, levels: Sequence[Tensor], plan: TokenPlan) -> list[Tensor]:
        """``levels``: ``(B, H·W, C)`` each, coarse to fine; returns the same shapes."""
        layers = iter(self.layers)
        last = len(self.num_layers) - 1
        tokens = inputs = levels[0][:, :0]
        for stage, num_layers in enumerate(self.num_layers):
            entering = levels[stage]
            if self.token_excite is not None and stage < last:
                shapes = plan.spatial_shapes
                entering = self.token_excite(entering, shapes[stage], levels[last], shapes[last])
            tokens = torch.cat((tokens, entering), dim=1)
            inputs = torch.cat((inputs, entering), dim=1)
            seen = plan.first(stage + 1)
            for _ in range(num_layers):
                tokens = next(layers)(tokens, seen)
                if self.residual and stage < last:
                    tokens = tokens + inputs
        return list(tokens.split(plan.lengths, dim=1))


@SEM_SEG_HEADS_REGISTRY.register()
class PROSCALE(PixelDecoder):
    """PRO-SCALE's pixel decoder, under the name of its configuration files.

    Args:
        input_shape: channels and stride of the backbone's levels.
        num_layers: layers of each stage, one stage for each level the encoder sees.
        mask_output_ops: ``"maxpool"`` (Light-Pixel Embedding) or ``"conv"``.
        recalibration: arguments of :class:`TokenRecalibration`, or None.
        residual: see :class:`ProgressiveEncoder`.
        encoder: arguments of every :class:`DeformableEncoderLayer`.
        frame: arguments of :class:`~proscale.modeling.pixel_decoders.base.PixelDecoder`.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_layers: Sequence[int],
        mask_output_ops: str,
        recalibration: dict | None,
        residual: bool,
        encoder: dict,
        frame: dict,
    ):
        levels = frame["transformer_in_features"]
        if len(num_layers) != len(levels) or min(num_layers) < 0:
            raise ValueError(
                f"MODEL.PROSCALE.PROSCALE_NUM_LAYERS is {list(num_layers)}: expected one number "
                f"≥ 0 for each of the encoder's {len(levels)} levels {list(levels)}"
            )
        if mask_output_ops not in MASK_OUTPUT_OPS:
            raise ValueError(
                f"MODEL.PROSCALE.MASK_OUTPUT_OPS is {mask_output_ops!r}: expected "
                f"{' or '.join(MASK_OUTPUT_OPS)}"
            )
        stages = [
            [DeformableEncoderLayer(n_levels=stage, **encoder) for _ in range(count)]
            for stage, count in enumerate(num_layers, start=1)
        ]
        # A single level has no finer one to be recalibrated by.
        excite = recalibration is not None and len(levels) > 1
        super().__init__(
            input_shape,
            encoder=ProgressiveEncoder(
                stages,
                token_excite=TokenRecalibration(encoder["d_model"], **recalibration)
                if excite
                else None,
                residual=residual,
            ),
            light=mask_output_ops == "maxpool",
            **frame,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        return {
            "input_shape": input_shape,
            "num_layers": cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS,
            "mask_output_ops": cfg.MODEL.PROSCALE.MASK_OUTPUT_OPS,
            "recalibration": _recalibration_arguments(cfg),
            "residual": cfg.MODEL.PROSCALE.RESIDUAL,
            "encoder": encoder_arguments(cfg),
            "frame": frame_arguments(cfg),
        }


def _recalibration_arguments(cfg: CfgNode) -> dict | None:
    node = cfg.MODEL.PROSCALE
    layout, convolution = node.RECALIBRATION, node.IS_EXCITE_CONV
    if layout not in (*LAYOUTS, "none"):
        raise ValueError(
            f"MODEL.PROSCALE.RECALIBRATION is {layout!r}: expected {', '.join(LAYOUTS)} or none"
        )
    if convolution not in (True, False, None):
        raise ValueError(
            f"MODEL.PROSCALE.IS_EXCITE_CONV is {convolution!r}: expected True, False or None"
        )
    if convolution is None and layout == "transposed":
        raise ValueError(
            "MODEL.PROSCALE.RECALIBRATION is 'transposed', but IS_EXCITE_CONV is None, which means "
            "no recalibration: set it to True or False, or RECALIBRATION to none"
        )
    if convolution is None or layout == "none":
        return None
    return {"convolution": convolution, "temperature": node.EXCITE_TEMP, "layout": layout}
