"""Models and their parts, registered with Detectron2 on import."""

from proscale.modeling import backbones, pixel_decoders, transformer_decoder
from proscale.modeling.detection import Detector
from proscale.modeling.head import (
    TRANSFORMER_DECODER_REGISTRY,
    MaskFormerHead,
    build_transformer_decoder,
)
from proscale.modeling.losses import HungarianMatcher, SetCriterion
from proscale.modeling.pose import PoseEstimator
from proscale.modeling.segformer_head import SegFormerHead
from proscale.modeling.segmenter import MaskFormer
from proscale.modeling.sliding_window import SlidingWindow, with_sliding_window

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "Detector",
    "HungarianMatcher",
    "MaskFormer",
    "MaskFormerHead",
    "PoseEstimator",
    "SegFormerHead",
    "SetCriterion",
    "SlidingWindow",
    "backbones",
    "build_transformer_decoder",
    "pixel_decoders",
    "transformer_decoder",
    "with_sliding_window",
]
