"""Pixel decoders: from a backbone's features to mask features and levels that queries attend."""

from proscale.modeling.pixel_decoders.lite_detr import LiteDETRPixelDecoder
from proscale.modeling.pixel_decoders.mask2former import MSDeformAttnPixelDecoder
from proscale.modeling.pixel_decoders.proscale import PROSCALE
from proscale.modeling.pixel_decoders.rt_detr import RTDETRPixelDecoder

__all__ = ["PROSCALE", "LiteDETRPixelDecoder", "MSDeformAttnPixelDecoder", "RTDETRPixelDecoder"]
