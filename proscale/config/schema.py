"""Kinds of values that configuration keys accept, and rules between keys.

A key's type is that of its default. A kind adds a range or a list of names where a value outside of
it would pass unnoticed, or stop in the middle of Detectron2 or PyTorch without naming the key.
"""

from collections.abc import Callable, Iterator
from functools import reduce
from inspect import get_annotations
from math import inf, isfinite
from operator import getitem
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
            if accepted:
                raise ConfigError(f"{key} is {values!r}: expected {accepted}")


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


def _check_image_norm(cfg: CfgNode) -> None:
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    if not len(mean) == len(std) == channels:
        raise ConfigError(
            f"MODEL.PIXEL_MEAN is {mean!r} and MODEL.PIXEL_STD {std!r}: expected {channels} "
            f"numbers each with INPUT.FORMAT {cfg.INPUT.FORMAT}"
        )


def _check_precision(cfg: CfgNode) -> None:
    amp = cfg.SOLVER.AMP
    on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    if amp.ENABLED and amp.DTYPE == "float16" and on_cpu:
        raise ConfigError(
            "SOLVER.AMP.DTYPE is float16: expected auto or bfloat16 with MODEL.DEVICE cpu, where "
            "float16 is slow"
        )


def _check_clipping(cfg: CfgNode) -> None:
    clip, node = cfg.SOLVER.CLIP_GRADIENTS, "SOLVER.CLIP_GRADIENTS"
    if clip.ENABLED and not 0 < clip.CLIP_VALUE < inf:
        raise ConfigError(
            f"{node}.CLIP_VALUE is {clip.CLIP_VALUE}: expected numbers above 0 "
            f"({node}.ENABLED False switches clipping off)"
        )
    if cfg.DISTRIBUTED.SHARDED and not isfinite(clip.NORM_TYPE):
        raise ConfigError(
            f"{node}.NORM_TYPE is {clip.NORM_TYPE}: expected finite numbers with "
            "DISTRIBUTED.SHARDED, where a process may hold nothing of a small parameter"
        )


def _check_evaluation(cfg: CfgNode) -> None:
    if cfg.TEST.AUG.ENABLED and not cfg.TEST.AUG.MIN_SIZES:
        raise ConfigError("TEST.AUG.MIN_SIZES is empty: expected short sides in pixels")
    node, window = "TEST.SLIDING_WINDOW", cfg.TEST.SLIDING_WINDOW
    if not window.ENABLED:
        return
    for key in ("CROP_SIZE", "STRIDE"):
        if len(window[key]) != 2:
            raise ConfigError(
                f"{node}.{key} is {window[key]}: expected [height, width], pixels from 1"
            )
    if any(step > size for step, size in zip(window.STRIDE, window.CROP_SIZE, strict=True)):
        raise ConfigError(
            f"{node}.STRIDE is {window.STRIDE}: expected at most CROP_SIZE, {window.CROP_SIZE}, "
            "or pixels between the windows would be skipped"
        )
    # Windows are averaged by their class scores: a model must give these, and nothing else.
    wanted = {"SEMANTIC_ON": True, "PANOPTIC_ON": False, "INSTANCE_ON": False}
    if cfg.MODEL.META_ARCHITECTURE == "MaskFormer":
        for key, value in {**wanted, "SEMANTIC_LABELS_ONLY": False}.items():
            if cfg.MODEL.MASK_FORMER.TEST[key] is not value:
                raise ConfigError(
                    f"MODEL.MASK_FORMER.TEST.{key} is {not value}: expected {value} with "
                    f"{node}.ENABLED, because windows are averaged by their class scores"
                )


def _check_mask_former_head(cfg: CfgNode) -> None:
    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    if head.NAME != "MaskFormerHead":
        return
    # Sine position embeddings take a quarter of the channels for each of sin, cos of y and x.
    if node.HIDDEN_DIM % 4 or node.HIDDEN_DIM % node.NHEADS:
        raise ConfigError(
            f"MODEL.MASK_FORMER.HIDDEN_DIM is {node.HIDDEN_DIM}: expected multiples of 4 and of "
            f"MODEL.MASK_FORMER.NHEADS, {node.NHEADS}"
        )
    n_heads = head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS or node.NHEADS
    # Group norm has 32 groups.
    if head.CONVS_DIM % n_heads or head.CONVS_DIM % 32:
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.CONVS_DIM is {head.CONVS_DIM}: expected multiples of 32 and of "
            f"the encoder's heads, {n_heads} (MODEL.SEM_SEG_HEAD."
            "DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS, or MODEL.MASK_FORMER.NHEADS)"
        )
    if head.PIXEL_DECODER_NAME != "PROSCALE":
        return
    levels = head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
    progressive = cfg.MODEL.PROSCALE
    # A stage of the progressive encoder begins with each level.
    if len(progressive.PROSCALE_NUM_LAYERS) != len(levels):
        raise ConfigError(
            f"MODEL.PROSCALE.PROSCALE_NUM_LAYERS is {progressive.PROSCALE_NUM_LAYERS}: expected "
            f"one number for each of the encoder's {len(levels)} levels {levels}"
        )
    if progressive.IS_EXCITE_CONV is None and progressive.RECALIBRATION == "transposed":
        raise ConfigError(
            "MODEL.PROSCALE.RECALIBRATION is 'transposed': expected none with IS_EXCITE_CONV None, "
            "which means no recalibration; or set IS_EXCITE_CONV to True or False"
        )


def _check_segformer_head(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.NAME == "SegFormerHead" and head.NORM not in ("BN", "SyncBN"):
        raise ConfigError(
            f"MODEL.SEM_SEG_HEAD.NORM is {head.NORM!r}: expected BN or SyncBN with SegFormerHead"
        )


def _check_swin(cfg: CfgNode) -> None:
    swin = cfg.MODEL.SWIN
    if cfg.MODEL.BACKBONE.NAME != "D2SwinTransformer":
        return
    # Every stage doubles the width, and divides it among its heads.
    widths = [swin.EMBED_DIM * 2**stage for stage in range(len(swin.DEPTHS))]
    heads = swin.NUM_HEADS
    if len(heads) != len(widths) or any(w % n for w, n in zip(widths, heads, strict=True)):
        raise ConfigError(
            f"MODEL.SWIN.NUM_HEADS is {heads}: expected one number for each of the stages of "
            f"MODEL.SWIN.DEPTHS {swin.DEPTHS}, dividing their widths {widths}"
        )
    names = [f"res{stage + 2}" for stage in range(len(widths))]
    if not swin.OUT_FEATURES or not set(swin.OUT_FEATURES) <= set(names):
        raise ConfigError(
            f"MODEL.SWIN.OUT_FEATURES is {swin.OUT_FEATURES}: expected one or more of {names}"
        )


def _check_mit(cfg: CfgNode) -> None:
    mit = cfg.MODEL.MIT
    if cfg.MODEL.BACKBONE.NAME != "MixVisionTransformer":
        return
    for key in ("DEPTHS", "NUM_HEADS", "SR_RATIOS"):
        if not mit.VARIANT and len(mit[key]) != 4:
            raise ConfigError(
                f"MODEL.MIT.{key} is {mit[key]}: expected 4 whole numbers from 1, one for each "
                "stage"
            )
    # Imported here, because modeling is built on Detectron2's registries, like this module.
    from proscale.modeling.backbones.token_merging_config import parse_token_merging

    try:
        parse_token_merging(mit.TOKEN_MERGING)
    except ConfigError as error:
        message = str(error).replace("token_merging", "MODEL.MIT.TOKEN_MERGING", 1)
        raise ConfigError(message) from error
