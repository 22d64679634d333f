"""Kinds of values that configuration keys accept, and rules between keys.

A key's type is that of its default. A kind adds a range or a list of names where a value outside of
it would pass unnoticed, or stop in the middle of Detectron2 or PyTorch without naming the key.
"""

from collections.abc import Callable, Iterator
from functools import reduce
from inspect import get_annotations
from math import inf, isfinite
from operator import getitem, mod
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry

from proscale.errors import ConfigError

Check = Callable[[Any], str]
"""From a value to the accepted ones in words; empty if the value is one of them."""


def _whole_from(least: int) -> Check:
    words = f"whole numbers from {least}"
    return lambda value: "" if isinstance(value, int) and value >= least else words


def _between(low: float, high: float, words: str) -> Check:
    return lambda value: "" if low <= value <= high and value < inf else words


def _one_of(accepted: tuple[Any, ...]) -> Check:
    # An empty text would not be seen.
    return lambda value: "" if value in accepted else " or ".join(str(a) or "''" for a in accepted)


def _registered(registry: Registry) -> Check:
    # Looked up when a value is checked: users may register more.
    return lambda value: "" if value in registry else " or ".join(sorted(n for n, _ in registry))


PositiveInt = Annotated[int, _whole_from(1)]
NonNegativeInt = Annotated[int, _whole_from(0)]
PositiveFloat = Annotated[float, lambda value: "" if 0 < value < inf else "numbers above 0"]
NonNegativeFloat = Annotated[float, _between(0, inf, "numbers from 0")]
FloatFromOne = Annotated[float, _between(1, inf, "numbers from 1")]
Fraction = Annotated[float, _between(0, 1, "numbers from 0 to 1")]
MetaArchitecture = Annotated[str, _registered(META_ARCH_REGISTRY)]
BackboneName = Annotated[str, _registered(BACKBONE_REGISTRY)]
HeadName = Annotated[str, _registered(SEM_SEG_HEADS_REGISTRY)]


class Keys:
    """Declares keys of a node: annotations are the accepted values, values the defaults.

    Keys without a default are Detectron2's. The text below explains the keys between it and the
    text before.

    Attributes:
        node: full name.
        blocks: all that are declared.
    """

    node: ClassVar[str]
    blocks: ClassVar[list[type["Keys"]]] = []

    def __init_subclass__(cls, node: str) -> None:
        cls.node = node
        Keys.blocks.append(cls)


def declared_keys() -> Iterator[tuple[str, Any]]:
    """Full name and annotation of every declared key."""
    for block in Keys.blocks:
        for name, annotation in get_annotations(block).items():
            yield f"{block.node}.{name}", annotation


def check_values(cfg: CfgNode) -> None:
    """Make sure that all values of ``cfg`` are accepted, each alone and together.

    Raises:
        ConfigError: of the first key whose value is not.
    """
    check_keys(cfg)
    for rule in (
        *(_check_image_norm, _check_precision, _check_clipping, _check_evaluation),
        *(_check_mask_former_head, _check_segformer_head, _check_swin, _check_mit),
    ):
        rule(cfg)


def check_keys(cfg: CfgNode) -> None:
    """Make sure that every declared key has an accepted value; of lists, every element.

    Raises:
        ConfigError: of the first key that has not.
    """
    for key, annotation in declared_keys():
        check = _check(annotation)
        values = value_of(cfg, key)
        for value in values if isinstance(values, (list, tuple)) else [values]:
            accepted = check(value) if check else ""
            _require(not accepted, cfg, key, accepted)


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of ``cfg`` under a full name such as ``MODEL.DEVICE``."""
    return reduce(getitem, key.split("."), cfg)


def set_value(cfg: CfgNode, key: str, value: Any) -> None:
    """Set a key of ``cfg`` by its full name."""
    node, _, name = key.rpartition(".")
    (value_of(cfg, node) if node else cfg)[name] = value


def convert(key: str, value: Any, default: Any) -> Any:
    """``value`` in the type of ``default``.

    Args:
        key: full name.
        value: as read, from YAML or the command line: the text of a number is one.
        default: the key's value so far; None takes anything.

    Raises:
        ConfigError: it has another type; an integer passes for a float.
    """
    # Detectron2's reading: Python literals are values, all else is text.
    decoded = CfgNode._decode_cfg_value(value) if isinstance(value, str) else value
    if default is None or (decoded is None and key in _nullable_keys()):
        return decoded
    if isinstance(default, (list, tuple)):
        kinds = {_kind(element) for element in default}
        fits = isinstance(decoded, (list, tuple)) and all(
            _kind(element) in kinds for element in decoded if kinds
        )
        accepted = f"a list of {kinds.pop()}s" if len(kinds) == 1 else "a list"
        if fits:
            # Numbers stay as they are: INPUT.CROP.SIZE has fractions or pixels.
            return type(default)(decoded)
    elif isinstance(default, str):
        # None is Detectron2's “no norm”; a number may be the name of a file or folder.
        fits, accepted = not isinstance(decoded, (dict, list, tuple, bool)), "a text"
        if fits:
            return decoded if isinstance(decoded, (str, NoneType)) else str(value)
    else:
        is_number = type(default) is float and type(decoded) is int
        if type(decoded) is type(default) or is_number:
            return type(default)(decoded)
        accepted = {bool: "True or False", int: "a whole number"}.get(type(default), "a number")
    raise ConfigError(f"{key} is {decoded!r}: expected {accepted}, such as {default!r}")


def _check(annotation: Any) -> Check | None:
    """The check of an annotation: a name of a list, or the one that comes with it or its parts."""
    if get_origin(annotation) is Literal:
        return _one_of(get_args(annotation))
    if get_origin(annotation) is Annotated:
        return annotation.__metadata__[0]
    return next(filter(None, map(_check, get_args(annotation))), None)


def _nullable_keys() -> set[str]:
    return {key for key, annotation in declared_keys() if NoneType in get_args(annotation)}


def _kind(element: Any) -> str:
    if isinstance(element, str):
        return "text"
    is_number = isinstance(element, (int, float)) and not isinstance(element, bool)
    return "number" if is_number else "value"


def _require(fits: bool, cfg: CfgNode, key: str, expected: str) -> None:
    if not fits:
        raise ConfigError(f"{key} is {value_of(cfg, key)!r}: expected {expected}")


def _check_image_norm(cfg: CfgNode) -> None:
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    # One number per channel of the images that the mappers read.
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    if not len(mean) == len(std) == channels:
        raise ConfigError(
            f"MODEL.PIXEL_MEAN is {mean!r} and MODEL.PIXEL_STD {std!r}: expected {channels} "
            f"numbers each with INPUT.FORMAT {cfg.INPUT.FORMAT}"
        )


def _check_precision(cfg: CfgNode) -> None:
    amp = cfg.SOLVER.AMP
    # CUDA trains in float16 as published; CPUs compute in bfloat16.
    is_slow = amp.DTYPE == "float16" and torch.device(cfg.MODEL.DEVICE).type == "cpu"
    expected = "auto or bfloat16 with MODEL.DEVICE cpu, where float16 is slow"
    _require(not (amp.ENABLED and is_slow), cfg, "SOLVER.AMP.DTYPE", expected)


def _check_clipping(cfg: CfgNode) -> None:
    clip, node = cfg.SOLVER.CLIP_GRADIENTS, "SOLVER.CLIP_GRADIENTS"
    expected = f"numbers above 0 ({node}.ENABLED False switches clipping off)"
    _require(not clip.ENABLED or 0 < clip.CLIP_VALUE < inf, cfg, f"{node}.CLIP_VALUE", expected)
    # A rank may hold nothing of a small parameter, and the largest of nothing is not defined.
    expected = "finite numbers with DISTRIBUTED.SHARDED"
    is_finite = isfinite(clip.NORM_TYPE)
    _require(is_finite or not cfg.DISTRIBUTED.SHARDED, cfg, f"{node}.NORM_TYPE", expected)


def _check_evaluation(cfg: CfgNode) -> None:
    views, window, node = cfg.TEST.AUG, cfg.TEST.SLIDING_WINDOW, "TEST.SLIDING_WINDOW"
    has_views = not views.ENABLED or len(views.MIN_SIZES) > 0
    _require(has_views, cfg, "TEST.AUG.MIN_SIZES", "short sides in pixels, one or more")
    if not window.ENABLED:
        return
    for key in ("CROP_SIZE", "STRIDE"):
        _require(len(window[key]) == 2, cfg, f"{node}.{key}", "[height, width], pixels from 1")
    # A longer stride would skip the pixels between the windows.
    covers = all(step <= size for step, size in zip(window.STRIDE, window.CROP_SIZE, strict=True))
    _require(covers, cfg, f"{node}.STRIDE", f"at most CROP_SIZE, {window.CROP_SIZE}")
    # Windows are averaged by their class scores: a model must give these, and nothing else.
    wanted = {"SEMANTIC_ON": True, "PANOPTIC_ON": False, "INSTANCE_ON": False}
    if cfg.MODEL.META_ARCHITECTURE == "MaskFormer":
        for key, value in {**wanted, "SEMANTIC_LABELS_ONLY": False}.items():
            name = f"MODEL.MASK_FORMER.TEST.{key}"
            _require(value_of(cfg, name) is value, cfg, name, f"{value} with {node}.ENABLED")


def _check_mask_former_head(cfg: CfgNode) -> None:
    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    if head.NAME != "MaskFormerHead":
        return
    # A quarter of the channels each is the sine and cosine of y and of x; heads divide them all.
    fits = node.HIDDEN_DIM % 4 == node.HIDDEN_DIM % node.NHEADS == 0
    expected = f"multiples of 4 and of MODEL.MASK_FORMER.NHEADS, {node.NHEADS}"
    _require(fits, cfg, "MODEL.MASK_FORMER.HIDDEN_DIM", expected)
    # Group norm has 32 groups.
    n_heads = head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS or node.NHEADS
    expected = (
        f"multiples of 32 and of the encoder's heads, {n_heads} "
        "(DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS, or MODEL.MASK_FORMER.NHEADS)"
    )
    fits = head.CONVS_DIM % n_heads == head.CONVS_DIM % 32 == 0
    _require(fits, cfg, "MODEL.SEM_SEG_HEAD.CONVS_DIM", expected)
    if head.PIXEL_DECODER_NAME != "PROSCALE":
        return
    # The progressive encoder has a stage for every level that joins.
    node, levels = cfg.MODEL.PROSCALE, head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
    expected = f"one number for each of the encoder's {len(levels)} levels {levels}"
    fits = len(node.PROSCALE_NUM_LAYERS) == len(levels)
    _require(fits, cfg, "MODEL.PROSCALE.PROSCALE_NUM_LAYERS", expected)
    fits = node.IS_EXCITE_CONV is not None or node.RECALIBRATION != "transposed"
    expected = "none with IS_EXCITE_CONV None, which means no recalibration"
    _require(fits, cfg, "MODEL.PROSCALE.RECALIBRATION", expected)


def _check_segformer_head(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    fits = head.NAME != "SegFormerHead" or head.NORM in ("BN", "SyncBN")
    _require(fits, cfg, "MODEL.SEM_SEG_HEAD.NORM", "BN or SyncBN with SegFormerHead")


def _check_swin(cfg: CfgNode) -> None:
    swin = cfg.MODEL.SWIN
    if cfg.MODEL.BACKBONE.NAME != "D2SwinTransformer":
        return
    # Every stage doubles the width, and divides it among its heads.
    widths = [swin.EMBED_DIM * 2**stage for stage in range(len(swin.DEPTHS))]
    fits = len(swin.NUM_HEADS) == len(widths) and not any(map(mod, widths, swin.NUM_HEADS))
    expected = (
        "one number for each of the stages of "
        f"MODEL.SWIN.DEPTHS {swin.DEPTHS}, dividing their widths {widths}"
    )
    _require(fits, cfg, "MODEL.SWIN.NUM_HEADS", expected)
    # res2 has stride 4 with patches of 4 pixels, and every stage doubles it.
    names = [f"res{stage + 2}" for stage in range(len(widths))]
    fits = bool(swin.OUT_FEATURES) and set(swin.OUT_FEATURES) <= set(names)
    _require(fits, cfg, "MODEL.SWIN.OUT_FEATURES", f"one or more of {names}")


def _check_mit(cfg: CfgNode) -> None:
    mit = cfg.MODEL.MIT
    if cfg.MODEL.BACKBONE.NAME != "MixVisionTransformer":
        return
    # Variants b0 to b5 have settings of their own.
    for key in ("DEPTHS", "NUM_HEADS", "SR_RATIOS"):
        fits = bool(mit.VARIANT) or len(mit[key]) == 4
        _require(fits, cfg, f"MODEL.MIT.{key}", "4 whole numbers from 1, one for each stage")
    # Imported here, because modeling is built on Detectron2's registries, like this module.
    from proscale.modeling.backbones.token_merging_config import parse_token_merging

    try:
        parse_token_merging(mit.TOKEN_MERGING)
    except ConfigError as error:
        message = str(error).replace("token_merging", "MODEL.MIT.TOKEN_MERGING", 1)
        raise ConfigError(message) from error
