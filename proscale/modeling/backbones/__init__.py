"""Backbones that Detectron2 does not have."""

from proscale.modeling.backbones.mit import MixVisionTransformer
from proscale.modeling.backbones.swin import D2SwinTransformer
from proscale.modeling.backbones.timm import TimmBackbone

__all__ = ["D2SwinTransformer", "MixVisionTransformer", "TimmBackbone"]
