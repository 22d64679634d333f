"""Names of ImageNet classifiers whose networks are backbones here: ResNet and Swin Transformer.

What a classifier has behind the backbone, and norms of outputs that only the backbone has, are
nobody's counterpart.
"""

from types import MappingProxyType

import torch
from torch import Tensor

from proscale.checkpoint.rules import Implied, Rule, Scheme, rename
from proscale.modeling.backbones.swin import relative_position_index

RGB = MappingProxyType(
    {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    }
)
"""How torchvision, Swin and Mask2Former normalise images."""

_RESNET = "backbone.res{stage+2}.{block}."
_SWIN = "backbone."
SWIN_BLOCK = _SWIN + "layers.{stage}.blocks.{block}."
_SWIN_BLOCK_NAMES = (
    "norm1.{tensor}",
    "attn.relative_position_bias_table",
    "attn.qkv.{tensor}",
    "attn.proj.{tensor}",
    "norm2.{tensor}",
    "mlp.fc1.{tensor}",
    "mlp.fc2.{tensor}",
)


def resnet_rules(
    *, stem: str, stem_norm: str, conv: str, norm: str, shortcut: str, shortcut_norm: str
) -> tuple[Rule, ...]:
    """Rules of a ResNet from the templates of its modules; ``{conv}`` counts within a block."""
    return (
        rename("backbone.stem.conv1.{tensor}", stem + ".{tensor}"),
        rename("backbone.stem.conv1.norm.{tensor}", stem_norm + ".{tensor}"),
        rename(_RESNET + "conv{conv+1}.{tensor}", conv + ".{tensor}"),
        rename(_RESNET + "conv{conv+1}.norm.{tensor}", norm + ".{tensor}"),
        rename(_RESNET + "shortcut.{tensor}", shortcut + ".{tensor}"),
        rename(_RESNET + "shortcut.norm.{tensor}", shortcut_norm + ".{tensor}"),
    )


def swin_rules(prefix: str, *, downsample: str = "{stage}") -> tuple[Rule, ...]:
    """Rules of a Swin Transformer with Microsoft's names.

    Args:
        prefix: before every name.
        downsample: number of the stage that has the merging behind our ``{stage}``.
    """
    ours, theirs = _SWIN + "layers.{stage}.downsample.", f"{prefix}layers.{downsample}.downsample."
    return (
        rename(_SWIN + "patch_embed.proj.{tensor}", prefix + "patch_embed.proj.{tensor}"),
        rename(_SWIN + "patch_embed.norm.{tensor}", prefix + "patch_embed.norm.{tensor}"),
        *(
            rename(SWIN_BLOCK + name, SWIN_BLOCK.replace(_SWIN, prefix) + name)
            for name in _SWIN_BLOCK_NAMES
        ),
        rename(ours + "norm.{tensor}", theirs + "norm.{tensor}"),
        rename(ours + "reduction.{tensor}", theirs + "reduction.{tensor}"),
    )


def swin_index(table: Tensor) -> Tensor:
    """The rows of a bias table ``((2·window - 1)², heads)`` that pairs of tokens look up."""
    side = round(len(table) ** 0.5)
    with torch.device(table.device):
        return relative_position_index((side + 1) // 2)


SWIN_INDICES = Implied(
    SWIN_BLOCK + "attn.relative_position_index",
    SWIN_BLOCK + "attn.relative_position_bias_table",
    swin_index,
)
"""For schemes in whose files the indices are not."""


def _microsoft(prefix: str) -> Scheme:
    indices = "layers.{stage}.blocks.{block}.attn.relative_position_index"
    return Scheme(
        # In timm's models the first stage has none.
        marks=(prefix + "layers.0.downsample.reduction.{tensor}",),
        rules=(*swin_rules(prefix), rename(_SWIN + indices, prefix + indices)),
        container="model",
        settings=RGB,
    )


TORCHVISION = Scheme(
    marks=("layer{stage+1}.{block}.bn{conv+1}.{tensor}",),
    rules=resnet_rules(
        stem="conv1",
        stem_norm="bn1",
        conv="layer{stage+1}.{block}.conv{conv+1}",
        norm="layer{stage+1}.{block}.bn{conv+1}",
        shortcut="layer{stage+1}.{block}.downsample.0",
        shortcut_norm="layer{stage+1}.{block}.downsample.1",
    ),
    settings={**RGB, "MODEL.RESNETS.STRIDE_IN_1X1": False},
)

DETECTRON2 = Scheme(
    marks=("res{stage+2}.{block}.conv{conv+1}.norm.{tensor}",),
    rules=resnet_rules(
        stem="stem.conv1",
        stem_norm="stem.conv1.norm",
        conv="res{stage+2}.{block}.conv{conv+1}",
        norm="res{stage+2}.{block}.conv{conv+1}.norm",
        shortcut="res{stage+2}.{block}.shortcut",
        shortcut_norm="res{stage+2}.{block}.shortcut.norm",
    ),
    container="model",
)

MICROSOFT = _microsoft("")
# Of its two networks the one that is trained by gradients.
MOBY = _microsoft("encoder.")

TIMM_SWIN = Scheme(
    # The merging stands before a stage, where Microsoft's names have it behind the one before.
    marks=("layers.3.downsample.reduction.{tensor}",),
    rules=swin_rules("", downsample="{stage+1}"),
    settings=RGB,
    implied_ours=(SWIN_INDICES,),
)
