"""What values configuration keys accept, as far as it can be told of each alone.

Types are those of the defaults. Ranges and names are listed where a value outside of them would
pass unnoticed, or stop in the middle of Detectron2 or PyTorch with a message that has no key.
What depends on several keys is checked where it is read.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import getitem
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry

from proscale.errors import ConfigError


def check_type(key: str, value: Any, default: Any) -> None:
    """Make sure that ``value`` can take the place of ``default``.

    Args:
        key: full name.
        value: as read, from YAML or the command line: the text of a number is one.
        default: what the key has so far; None takes anything.

    Raises:
        ConfigError: it cannot.
    """
    if isinstance(value, str):
        value = CfgNode._decode_cfg_value(value)
    if default is None or (value is None and key in _OPTIONAL):
        return
    if isinstance(default, (list, tuple)):
        kinds = {_kind(element) for element in default}
        fits = isinstance(value, (list, tuple)) and all(
            _kind(element) in kinds for element in value if kinds
        )
        accepted = f"a list of {kinds.pop()}s" if len(kinds) == 1 else "a list"
    elif isinstance(default, str):
        # Detectron2 has None for “no norm”; what looks like a number may be the name of a file.
        fits, accepted = not isinstance(value, (dict, bool)), "a text"
    else:
        fits, accepted = type(value) is type(default), _TYPES[type(default)]
    if not fits:
        raise ConfigError(f"{key} is {value!r}: expected {accepted}, such as {default!r}")


_OPTIONAL = ("MODEL.PROSCALE.IS_EXCITE_CONV",)
"""Keys for which None means something."""

_TYPES = {bool: "True or False", int: "a whole number", float: "a number with a decimal point"}


def _kind(element: Any) -> str:
    if isinstance(element, str):
        return "text"
    is_number = isinstance(element, (int, float)) and not isinstance(element, bool)
    return "number" if is_number else "value"


def check_values(cfg: CfgNode) -> None:
    """Make sure that the values of ``cfg`` are in range and that what they name is there.

    Raises:
        ConfigError: of the first key that is wrong.
    """
    for check, keys in _CHECKS:
        for key in keys.split():
            values = value_of(cfg, key)
            for value in values if isinstance(values, (list, tuple)) else [values]:
                accepted = check(value)
                if accepted:
                    raise ConfigError(f"{key} is {values!r}: expected {accepted}")
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    if not len(mean) == len(std) == channels:
        raise ConfigError(
            f"MODEL.PIXEL_MEAN is {mean!r} and MODEL.PIXEL_STD {std!r}: expected {channels} "
            f"numbers each with INPUT.FORMAT {cfg.INPUT.FORMAT}"
        )


def value_of(cfg: CfgNode, key: str) -> Any:
    """What ``cfg`` has under a full name, ``MODEL.DEVICE`` say."""
    return reduce(getitem, key.split("."), cfg)


def nearest_names(name: str, known: Iterable[str]) -> str:
    """What is likely meant by an unknown ``name``: the nearest of ``known``, else some of them."""
    known = sorted(known)
    return ", ".join(difflib.get_close_matches(name, known) or known[:5])


Check = Callable[[Any], str]
"""From a value to what is accepted in its place; empty if it is accepted itself."""


def _at_least(least: int) -> Check:
    return lambda value: "" if value >= least else f"whole numbers from {least}"


def _above_zero(value: float) -> str:
    return "" if 0 < value < float("inf") else "numbers above 0"


def _not_negative(value: float) -> str:
    return "" if 0 <= value < float("inf") else "numbers from 0"


def _share(value: float) -> str:
    return "" if 0 <= value <= 1 else "numbers from 0 to 1"


def _one_of(accepted: Sequence[Any]) -> Check:
    return lambda value: "" if value in accepted else " or ".join(map(str, accepted))


def _registered(registry: Registry) -> Check:
    # Asked for at the time: others may register more.
    return lambda value: (
        "" if value in registry else ", ".join(sorted(name for name, _ in registry))
    )


_HEAD, _MASK_FORMER = "MODEL.SEM_SEG_HEAD", "MODEL.MASK_FORMER"

_CHECKS: tuple[tuple[Check, str], ...] = (
    (_registered(META_ARCH_REGISTRY), "MODEL.META_ARCHITECTURE"),
    (_registered(BACKBONE_REGISTRY), "MODEL.BACKBONE.NAME"),
    (_registered(SEM_SEG_HEADS_REGISTRY), f"{_HEAD}.NAME"),
    (_one_of((18, 34, 50, 101, 152)), "MODEL.RESNETS.DEPTH"),
    (
        _one_of(("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", None)),
        f"{_HEAD}.NORM",
    ),
    (_one_of(("RGB", "BGR", "L", "YUV-BT.601")), "INPUT.FORMAT"),
    (
        _at_least(1),
        "INPUT.IMAGE_SIZE INPUT.MIN_SIZE_TRAIN SOLVER.IMS_PER_BATCH "
        "SOLVER.CHECKPOINT_PERIOD DISTRIBUTED.TIMEOUT MODEL.SWIN.EMBED_DIM MODEL.SWIN.PATCH_SIZE "
        "MODEL.SWIN.WINDOW_SIZE MODEL.SWIN.NUM_HEADS MODEL.MIT.EMBED_DIM MODEL.MIT.NUM_HEADS "
        f"MODEL.MIT.SR_RATIOS {_HEAD}.NUM_CLASSES {_HEAD}.CONVS_DIM {_HEAD}.MASK_DIM "
        f"{_MASK_FORMER}.HIDDEN_DIM {_MASK_FORMER}.NHEADS {_MASK_FORMER}.DIM_FEEDFORWARD",
    ),
    (
        _at_least(0),
        "INPUT.MIN_SIZE_TEST INPUT.MAX_SIZE_TRAIN INPUT.MAX_SIZE_TEST SOLVER.MAX_ITER "
        "SOLVER.WARMUP_ITERS DATALOADER.NUM_WORKERS TEST.EVAL_PERIOD MODEL.SWIN.DEPTHS "
        f"MODEL.MIT.DEPTHS MODEL.PROSCALE.PROSCALE_NUM_LAYERS {_HEAD}.TRANSFORMER_ENC_LAYERS "
        f"{_HEAD}.IGNORE_VALUE",
    ),
    (_above_zero, "INPUT.MIN_SCALE INPUT.MAX_SCALE MODEL.PIXEL_STD"),
    (
        _not_negative,
        "SOLVER.BASE_LR SOLVER.WEIGHT_DECAY SOLVER.BACKBONE_MULTIPLIER SOLVER.HEAD_MULTIPLIER "
        f"{_MASK_FORMER}.CLASS_WEIGHT {_MASK_FORMER}.DICE_WEIGHT {_MASK_FORMER}.MASK_WEIGHT "
        f"{_MASK_FORMER}.NO_OBJECT_WEIGHT",
    ),
    (
        _share,
        f"{_MASK_FORMER}.DROPOUT {_MASK_FORMER}.TEST.OBJECT_MASK_THRESHOLD "
        f"{_MASK_FORMER}.TEST.OVERLAP_THRESHOLD MODEL.SWIN.DROP_RATE MODEL.SWIN.ATTN_DROP_RATE "
        f"MODEL.SWIN.DROP_PATH_RATE MODEL.MIT.DROP_PATH_RATE {_HEAD}.SEGFORMER_DROPOUT",
    ),
)
"""Of every kind of values the keys that have them; of lists, their elements."""
