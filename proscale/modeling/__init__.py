"""Models and their parts, registered with Detectron2 on import."""

from proscale.modeling import backbones, pixel_decoders
from proscale.modeling.head import MaskFormerHead
from proscale.modeling.losses import HungarianMatcher, SetCriterion
from proscale.modeling.segmenter import MaskFormer
from proscale.modeling.transformer_decoder import (
    TRANSFORMER_DECODER_REGISTRY,
    build_transformer_decoder,
)

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "HungarianMatcher",
    "MaskFormer",
    "MaskFormerHead",
    "SetCriterion",
    "backbones",
    "build_transformer_decoder",
    "pixel_decoders",
]
