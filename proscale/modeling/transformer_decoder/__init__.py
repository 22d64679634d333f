"""Transformer decoders: from the pixel decoder's features to a class and a mask for each query."""

from proscale.modeling.transformer_decoder.masked_attention import (
    MultiScaleMaskedTransformerDecoder,
)

__all__ = ["MultiScaleMaskedTransformerDecoder"]
