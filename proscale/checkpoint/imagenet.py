"""Names of ImageNet classifiers whose networks are backbones here: ResNet and Swin Transformer.

A classifier's layers behind the backbone, and norms of outputs that only the backbone has, have no
counterpart.
"""

from functools import cache
from math import isqrt
from types import MappingProxyType

from torch import Tensor

from proscale.checkpoint.rules import Implied, NamingScheme, Rule, Template, rename, rename_modules
from proscale.modeling.backbones.swin import relative_position_index

RGB = MappingProxyType(
    {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    }
)
"""How torchvision, Swin and Mask2Former normalise images."""

# Detectron2 counts stages from res2 and convolutions from 1, and puts norms below them.
_RESNET_BLOCK = "res{stage+2}.{block}."
RESNET_BLOCK = "backbone." + _RESNET_BLOCK


def resnet_rules(prefix: str) -> tuple[Rule, ...]:
    """Rules of a ResNet with torchvision's names behind ``prefix``."""
    return (
        *rename_modules("backbone.", prefix, "stem.conv1=conv1 stem.conv1.norm=bn1"),
        *rename_modules(
            RESNET_BLOCK,
            prefix + "layer{stage+1}.{block}.",
            """conv{conv+1} conv{conv+1}.norm=bn{conv+1}
            shortcut=downsample.0 shortcut.norm=downsample.1""",
        ),
    )


TORCHVISION = NamingScheme(
    marks=(Template("layer{stage+1}.{block}.bn{conv+1}.{tensor}"),),
    rules=resnet_rules(""),
    settings={**RGB, "MODEL.RESNETS.STRIDE_IN_1X1": False},
)
DETECTRON2 = NamingScheme(
    marks=(Template(_RESNET_BLOCK + "conv{conv+1}.norm.{tensor}"),),
    rules=(
        *rename_modules("backbone.", "", "stem.conv1 stem.conv1.norm"),
        *rename_modules(
            RESNET_BLOCK, _RESNET_BLOCK, "conv{conv+1} conv{conv+1}.norm shortcut shortcut.norm"
        ),
    ),
    container="model",
)

_SWIN_BLOCK = "layers.{stage}.blocks.{block}."
SWIN_BLOCK = "backbone." + _SWIN_BLOCK
_TABLE, SWIN_INDEX = "attn.relative_position_bias_table", "attn.relative_position_index"


# Few networks have more than one size of window; the longest published one is 24.
@cache
def _indices(rows: int) -> Tensor:
    """The rows that pairs of tokens look up, of a table of (2·window - 1)² ``rows``, one for each
    offset between two tokens of a window."""
    window = (isqrt(rows) + 1) // 2
    if not 1 <= window <= 64 or rows != (2 * window - 1) ** 2:
        raise ValueError(f"{rows} rows of a bias table: expected (2·window - 1)², window 1 to 64")
    return relative_position_index(window)


SWIN_INDICES = Implied(
    Template(SWIN_BLOCK + SWIN_INDEX),
    Template(SWIN_BLOCK + _TABLE),
    lambda table: _indices(len(table)).to(table.device),
)
"""The rows of a bias table that pairs of tokens look up, for schemes whose files lack them."""


def swin_rules(prefix: str, *, downsample: str = "{stage}") -> tuple[Rule, ...]:
    """Rules of a Swin Transformer with Microsoft's names behind ``prefix``; ``downsample`` numbers
    the stage that has the merging behind our ``{stage}``."""
    ours, theirs = "backbone.layers.{stage}.downsample.", f"{prefix}layers.{downsample}.downsample."
    return (
        *rename_modules("backbone.", prefix, "patch_embed.proj patch_embed.norm"),
        # Names within the blocks are Microsoft's here, too.
        *rename_modules(
            SWIN_BLOCK, prefix + _SWIN_BLOCK, "norm1 attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2"
        ),
        rename(SWIN_BLOCK + _TABLE, prefix + _SWIN_BLOCK + _TABLE),
        *rename_modules(ours, theirs, "norm reduction"),
    )


# Of MoBY's two networks, the encoder is the one that is trained by gradients.
MICROSOFT, MOBY = (
    NamingScheme(
        # In timm's models the first stage has none.
        marks=(Template(prefix + "layers.0.downsample.reduction.{tensor}"),),
        rules=(
            *swin_rules(prefix),
            rename(SWIN_BLOCK + SWIN_INDEX, prefix + _SWIN_BLOCK + SWIN_INDEX),
        ),
        container="model",
        settings=RGB,
    )
    for prefix in ("", "encoder.")
)
TIMM_SWIN = NamingScheme(
    # The merging stands before a stage, where Microsoft's names have it behind the one before.
    marks=(Template("layers.3.downsample.reduction.{tensor}"),),
    rules=swin_rules("", downsample="{stage+1}"),
    settings=RGB,
    implied_ours=(SWIN_INDICES,),
)
