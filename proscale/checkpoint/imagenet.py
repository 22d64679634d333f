"""Names of ImageNet classifiers whose networks are backbones here: ResNet and Swin Transformer.

A classifier's layers behind the backbone, and norms of outputs that only the backbone has, have no
counterpart.
"""

from types import MappingProxyType

import torch
from torch import Tensor

from proscale.checkpoint.rules import (
    Implied,
    NamingScheme,
    Rule,
    Template,
    matching,
    rename,
    rename_modules,
)
from proscale.modeling.backbones.swin import relative_position_index

RGB = MappingProxyType(
    {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    }
)
"""How torchvision, Swin and Mask2Former normalise images."""

_BLOCK = "layers.{stage}.blocks.{block}."
SWIN_BLOCK = "backbone." + _BLOCK
_TABLE, _INDEX = "attn.relative_position_bias_table", "attn.relative_position_index"


def resnet_rules(
    *, stem: str, stem_norm: str, conv: str, norm: str, shortcut: str, shortcut_norm: str
) -> tuple[Rule, ...]:
    """Rules of a ResNet from the templates of its modules; ``{conv}`` counts within a block."""
    # Detectron2 counts stages from res2 and convolutions from 1, and puts norms below them.
    block = "res{stage+2}.{block}."
    return rename_modules(
        "backbone.",
        "",
        f"""stem.conv1={stem} stem.conv1.norm={stem_norm}
        {block}conv{{conv+1}}={conv} {block}conv{{conv+1}}.norm={norm}
        {block}shortcut={shortcut} {block}shortcut.norm={shortcut_norm}""",
    )


def _swin_rules(prefix: str, *, downsample: str = "{stage}") -> tuple[Rule, ...]:
    """Rules of a Swin Transformer with Microsoft's names.

    Args:
        prefix: before every name.
        downsample: number of the stage that has the merging behind our ``{stage}``.
    """
    ours, theirs = "backbone.layers.{stage}.downsample.", f"{prefix}layers.{downsample}.downsample."
    return (
        *rename_modules("backbone.", prefix, "patch_embed.proj patch_embed.norm"),
        # Names within the blocks are Microsoft's here, too.
        *rename_modules(
            SWIN_BLOCK, prefix + _BLOCK, "norm1 attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2"
        ),
        rename(SWIN_BLOCK + _TABLE, prefix + _BLOCK + _TABLE),
        *rename_modules(ours, theirs, "norm reduction"),
    )


def _swin_index(table: Tensor) -> Tensor:
    """The rows of a bias table ``((2·window - 1)², heads)`` that pairs of tokens look up."""
    # The table has a row for each offset between two tokens of a window.
    side = round(len(table) ** 0.5)
    with torch.device(table.device):
        return relative_position_index((side + 1) // 2)


SWIN_INDICES = Implied(Template(SWIN_BLOCK + _INDEX), Template(SWIN_BLOCK + _TABLE), _swin_index)
"""For schemes whose files do not have the indices."""


def _microsoft(prefix: str) -> NamingScheme:
    return NamingScheme(
        # In timm's models the first stage has none.
        mark=matching(prefix + "layers.0.downsample.reduction.{tensor}"),
        rules=(*_swin_rules(prefix), rename(SWIN_BLOCK + _INDEX, prefix + _BLOCK + _INDEX)),
        container="model",
        settings=RGB,
    )


TORCHVISION = NamingScheme(
    mark=matching("layer{stage+1}.{block}.bn{conv+1}.{tensor}"),
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

DETECTRON2 = NamingScheme(
    mark=matching("res{stage+2}.{block}.conv{conv+1}.norm.{tensor}"),
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
# Of MoBY's two networks the one that is trained by gradients.
MOBY = _microsoft("encoder.")

TIMM_SWIN = NamingScheme(
    # The merging stands before a stage, where Microsoft's names have it behind the one before.
    mark=matching("layers.3.downsample.reduction.{tensor}"),
    rules=_swin_rules("", downsample="{stage+1}"),
    settings=RGB,
    implied_ours=(SWIN_INDICES,),
)
