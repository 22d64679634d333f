"""Transformer decoders by name."""

from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import nn

from proscale.errors import ConfigError

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_DECODER")


def build_transformer_decoder(cfg: CfgNode, in_channels: int) -> nn.Module:
    """Build ``MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME``.

    Args:
        cfg: the configuration.
        in_channels: width of the pixel decoder's levels.

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
