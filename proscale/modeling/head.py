"""The segmentation head: a pixel decoder, then a transformer decoder that predicts."""

from collections.abc import Mapping

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry
from torch import Tensor, nn

from proscale.errors import ConfigError
from proscale.modeling.pixel_decoders.base import NUM_DECODER_LEVELS, PixelDecoder

# Transformer decoders by name, as Detectron2 has its heads.
TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_DECODER")


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """A pixel decoder and a predictor, of ``num_classes`` K without “no object”: see
    :class:`~proscale.modeling.pixel_decoders.base.PixelDecoder` and
    :class:`~proscale.modeling.transformer_decoder.MultiScaleMaskedTransformerDecoder`.
    """

    @configurable
    def __init__(self, *, pixel_decoder: PixelDecoder, predictor: nn.Module, num_classes: int):
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        missing = [name for name in head.IN_FEATURES if name not in input_shape]
        if missing:
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(head.IN_FEATURES)}: expected levels that "
                f"the backbone {cfg.MODEL.BACKBONE.NAME} has, {sorted(input_shape)}"
            )
        # The pixel decoder sees the backbone's levels that the key names, and no others.
        levels = {name: input_shape[name] for name in head.IN_FEATURES}
        pixel_decoder = SEM_SEG_HEADS_REGISTRY.get(head.PIXEL_DECODER_NAME)(cfg, levels)
        return {
            "pixel_decoder": pixel_decoder,
            "predictor": build_transformer_decoder(cfg, head.CONVS_DIM),
            "num_classes": head.NUM_CLASSES,
        }

    def forward(self, features: Mapping[str, Tensor], *, auxiliary: bool | None = None) -> dict:
        """The predictor's outputs for the backbone's features by name.

        ``auxiliary``: whether its earlier predictions are wanted; None wants them when training.
        """
        # Pixel decoder: levels (B, C, …), coarse to fine. The coarsest three are attended; of the
        # finest, at stride 4, a 1x1 convolution makes the mask features.
        levels = self.pixel_decoder.decode(features)
        # Losses penalise earlier predictions as well; inference needs the last one alone.
        if auxiliary is None:
            auxiliary = self.training
        return self.predictor(
            levels[:NUM_DECODER_LEVELS],
            levels[-1],
            projection=self.pixel_decoder.mask_features,
            auxiliary=auxiliary,
        )


def build_transformer_decoder(cfg: CfgNode, in_channels: int) -> nn.Module:
    """Build ``MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME`` for levels of width ``in_channels``.

    Raises:
        ConfigError: if no decoder has this name.
    """
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    if name not in TRANSFORMER_DECODER_REGISTRY:
        accepted = ", ".join(key for key, _ in TRANSFORMER_DECODER_REGISTRY)
        raise ConfigError(
            f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME is {name!r}: expected {accepted}"
        )
    return TRANSFORMER_DECODER_REGISTRY.get(name)(cfg, in_channels)
