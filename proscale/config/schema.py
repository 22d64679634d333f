"""Adds the declared keys to a configuration, converts their values, and checks these."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from datetime import date
from functools import reduce
from inspect import get_annotations
from math import inf, isfinite
from operator import getitem, mod
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab import add_deeplab_config
from torch.utils._pytree import tree_leaves

from proscale.config.keys import DETECTRON2_KEYS, Keys, Range
from proscale.errors import ConfigError, printable


def add_proscale_config(cfg: CfgNode) -> None:
    """Add all keys of Mask2Former, PRO-SCALE and this project to ``cfg``, in place.

    Args:
        cfg: the node returned by ``detectron2.config.get_cfg()``.
    """
    # Published files carry a few DeepLab keys (poly schedule, stem type); they must be known.
    add_deeplab_config(cfg)
    # Nodes that Detectron2 has are extended, others are made.
    for block in Keys.blocks:
        node = reduce(lambda n, part: n.setdefault(part, CfgNode()), block.node.split("."), cfg)
        for name in get_annotations(block):
            node[name] = deepcopy(vars(block)[name])


def _annotations() -> Iterator[tuple[str, Any]]:
    """Full name and annotation of every key whose values are checked."""
    yield from DETECTRON2_KEYS.items()
    for block in Keys.blocks:
        for name, annotation in get_annotations(block).items():
            yield f"{block.node}.{name}", annotation


def check_values(cfg: CfgNode) -> None:
    """Make sure that all values of ``cfg`` are accepted, each alone (of lists, every element) and
    together.

    Raises:
        ConfigError: of the first key whose value is not.
    """
    for key, annotation in _annotations():
        values = value_of(cfg, key)
        for value in values if get_origin(annotation) in (list, tuple) else [values]:
            fits, expected = _fits(value, annotation)
            _require(fits, cfg, key, expected)
    # Of all keys, Detectron2's too: PyTorch has numbers of 64 bits, and few uses for others.
    for key, value in walk(cfg):
        leaves = [] if isinstance(value, CfgNode) else tree_leaves(value)
        numbers = [leaf for leaf in leaves if isinstance(leaf, (int, float))]
        fits = all(-(2**63) < number < 2**63 for number in numbers)
        # Gradients may be clipped by the largest.
        fits |= key == "SOLVER.CLIP_GRADIENTS.NORM_TYPE"
        _require(fits, cfg, key, "finite numbers of 64 bits")
    # The rules are evaluated in turn: the later ones rely on those before.
    for fits, key, expected in _rules(cfg):
        _require(fits, cfg, key, expected)


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of ``cfg`` under a full name such as ``MODEL.DEVICE``."""
    return reduce(getitem, key.split("."), cfg)


def set_value(cfg: CfgNode, key: str, value: Any) -> None:
    """Set a key of ``cfg`` by its full name."""
    node, _, name = key.rpartition(".")
    (value_of(cfg, node) if node else cfg)[name] = value


def walk(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All blocks and keys below ``node``, by their full names."""
    for name, value in node.items():
        yield prefix + name, value
        if isinstance(value, Mapping):
            yield from walk(value, f"{prefix}{name}.")


def key_values(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All keys below ``node`` that are no blocks, by their full names."""
    return ((name, value) for name, value in walk(node, prefix) if not isinstance(value, Mapping))


def quoted(value: object) -> str:
    """``value`` as messages quote it."""
    try:
        return printable(repr(value))
    # Python writes no more than 4300 digits.
    except ValueError:
        return "a value of more than 4300 digits"


def convert(key: str, value: Any, default: Any) -> Any:
    """``value``, as read, in the type of ``default``, the key's value so far; None takes anything.

    The text of a number is one, as on the command line, and an integer passes for a float.

    Raises:
        ConfigError: it has another type.
    """
    # Detectron2's reading: Python literals are values, all else is text.
    try:
        decoded = CfgNode._decode_cfg_value(value) if isinstance(value, str) else value
    # Of Python's parser, for thousands of signs or brackets.
    except (MemoryError, RecursionError):
        decoded = value
    nullable = (key for key, annotation in _annotations() if NoneType in get_args(annotation))
    if default is None or (decoded is None and key in nullable):
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
        named, accepted = isinstance(decoded, (int, float, date)), "a text"
        if isinstance(decoded, (str, NoneType)):
            return decoded
        if named and not isinstance(decoded, bool):
            with suppress(ValueError):
                return str(value)
    else:
        is_number = type(default) is float and type(decoded) is int
        if type(decoded) is type(default) or is_number:
            with suppress(OverflowError):
                return type(default)(decoded)
        accepted = {bool: "True or False", int: "a whole number"}.get(type(default), "a number")
    raise ConfigError(f"{key} is {quoted(decoded)}: expected {accepted}, such as {default!r}")


def _fits(value: Any, annotation: Any) -> tuple[bool, str]:
    """Whether a value or an element is accepted by its key's annotation, and what is, in words."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        # An empty text would not be seen.
        return value in arguments, " or ".join(str(name) or "''" for name in arguments)
    if isinstance(annotation, UnionType):
        # A key whose default is None takes values of any type so far.
        kinds = {get_origin(kind) or kind for kind in arguments}
        is_number = float in kinds and type(value) is int
        names = " or ".join(sorted(kind.__name__ for kind in kinds - {NoneType}))
        return is_number or type(value) in kinds, f"{names} or None"
    if get_origin(annotation) is not Annotated:
        return _fits(value, arguments[0]) if arguments else (True, "")
    kind, accepted = arguments
    if isinstance(accepted, Range):
        is_number = isinstance(value, (int, kind))
        return is_number and accepted.low <= value <= accepted.high, accepted.words
    # A registry, looked up when a value is checked: users may register more.
    return value in accepted, " or ".join(sorted(name for name, _ in accepted))


def _kind(element: Any) -> str:
    if isinstance(element, str):
        return "text"
    is_number = isinstance(element, (int, float)) and not isinstance(element, bool)
    return "number" if is_number else "value"


def _require(fits: bool, cfg: CfgNode, key: str, expected: str) -> None:
    if not fits:
        raise ConfigError(f"{key} is {quoted(value_of(cfg, key))}: expected {expected}")


def _rules(cfg: CfgNode) -> Iterator[tuple[bool, str, str]]:
    """Rules between keys: whether they hold, the key that is reported, its accepted values."""
    # Images: one number per channel that the mappers read.
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    if not len(mean) == len(std) == channels:
        raise ConfigError(
            f"MODEL.PIXEL_MEAN is {mean!r} and MODEL.PIXEL_STD {std!r}: expected {channels} "
            f"numbers each with INPUT.FORMAT {cfg.INPUT.FORMAT}"
        )

    # A longer side would fill the memory; that of image_file's limit.
    for split in ("TRAIN", "TEST"):
        short, longest = cfg.INPUT[f"MIN_SIZE_{split}"], cfg.INPUT[f"MAX_SIZE_{split}"]
        sides = [short] if isinstance(short, int) else short
        yield len(sides) > 0, f"INPUT.MIN_SIZE_{split}", "sides in pixels, one or more"
        fits = min(max(sides), longest or max(sides)) <= 2**14
        yield fits, f"INPUT.MIN_SIZE_{split}", "sides of at most 16384 pixels"
    jitter = cfg.INPUT.MIN_SCALE <= cfg.INPUT.MAX_SCALE <= 2**14 / cfg.INPUT.IMAGE_SIZE
    expected = (
        f"INPUT.MIN_SCALE, {cfg.INPUT.MIN_SCALE}, or more, and sides of at most 16384 pixels with "
        f"INPUT.IMAGE_SIZE {cfg.INPUT.IMAGE_SIZE}"
    )
    yield jitter, "INPUT.MAX_SCALE", expected

    # A file of boxes is of the persons in one data set.
    boxes = cfg.DATASETS.PERSON_BOXES_TEST
    fits = not boxes or cfg.MODEL.META_ARCHITECTURE == "PoseEstimator"
    expected = "'' unless MODEL.META_ARCHITECTURE is PoseEstimator"
    yield fits, "DATASETS.PERSON_BOXES_TEST", expected
    fits = not boxes or len(cfg.DATASETS.TEST) <= 1
    yield fits, "DATASETS.TEST", "one data set with DATASETS.PERSON_BOXES_TEST"

    # Mixed precision: CUDA trains in float16 as published; CPUs compute in bfloat16.
    amp = cfg.SOLVER.AMP
    is_slow = amp.DTYPE == "float16" and torch.device(cfg.MODEL.DEVICE).type == "cpu"
    expected = "auto or bfloat16 with MODEL.DEVICE cpu, where float16 is slow"
    yield not (amp.ENABLED and is_slow), "SOLVER.AMP.DTYPE", expected

    # Gradient clipping.
    clip, node = cfg.SOLVER.CLIP_GRADIENTS, "SOLVER.CLIP_GRADIENTS"
    expected = f"numbers above 0 ({node}.ENABLED False switches clipping off)"
    yield not clip.ENABLED or 0 < clip.CLIP_VALUE < inf, f"{node}.CLIP_VALUE", expected
    # A rank may hold nothing of a small parameter, and the largest of nothing is not defined.
    fits = isfinite(clip.NORM_TYPE) or not cfg.DISTRIBUTED.SHARDED
    yield fits, f"{node}.NORM_TYPE", "finite numbers with DISTRIBUTED.SHARDED"

    # Evaluation by views and by windows.
    views, window, node = cfg.TEST.AUG, cfg.TEST.SLIDING_WINDOW, "TEST.SLIDING_WINDOW"
    # Views and windows are averaged by pixel: boxes and poses have none.
    architecture = cfg.MODEL.META_ARCHITECTURE
    is_dense = architecture not in ("Detector", "PoseEstimator")
    expected = f"False with MODEL.META_ARCHITECTURE {architecture}"
    yield is_dense or not views.ENABLED, "TEST.AUG.ENABLED", expected
    yield is_dense or not window.ENABLED, f"{node}.ENABLED", expected
    fits = not views.ENABLED or len(views.MIN_SIZES) > 0
    yield fits, "TEST.AUG.MIN_SIZES", "short sides in pixels, one or more"
    if window.ENABLED:
        for key in ("CROP_SIZE", "STRIDE"):
            yield len(window[key]) == 2, f"{node}.{key}", "[height, width], pixels from 1"
        # A longer stride would skip the pixels between the windows.
        fits = all(step <= size for step, size in zip(window.STRIDE, window.CROP_SIZE, strict=True))
        yield fits, f"{node}.STRIDE", f"at most CROP_SIZE, {window.CROP_SIZE}"
    if window.ENABLED and cfg.MODEL.META_ARCHITECTURE == "MaskFormer":
        # Windows are averaged by their class scores: a model must give these, and nothing else.
        test = cfg.MODEL.MASK_FORMER.TEST
        for key in ("SEMANTIC_ON", "PANOPTIC_ON", "INSTANCE_ON", "SEMANTIC_LABELS_ONLY"):
            wanted, name = key == "SEMANTIC_ON", f"MODEL.MASK_FORMER.TEST.{key}"
            yield test[key] is wanted, name, f"{wanted} with {node}.ENABLED"

    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    if head.NAME == "MaskFormerHead":
        # A quarter of the channels each is the sine and cosine of y and of x; heads divide them.
        fits = node.HIDDEN_DIM % 4 == node.HIDDEN_DIM % node.NHEADS == 0
        expected = f"multiples of 4 and of MODEL.MASK_FORMER.NHEADS, {node.NHEADS}"
        yield fits, "MODEL.MASK_FORMER.HIDDEN_DIM", expected
        # Group norm has 32 groups.
        n_heads = head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS or node.NHEADS
        expected = (
            f"multiples of 32 and of the encoder's heads, {n_heads} "
            "(DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS, or MODEL.MASK_FORMER.NHEADS)"
        )
        fits = head.CONVS_DIM % n_heads == head.CONVS_DIM % 32 == 0
        yield fits, "MODEL.SEM_SEG_HEAD.CONVS_DIM", expected
        fits = node.TEST.DEC_LAYERS <= node.DEC_LAYERS
        expected = f"at most MODEL.MASK_FORMER.DEC_LAYERS, {node.DEC_LAYERS}"
        yield fits, "MODEL.MASK_FORMER.TEST.DEC_LAYERS", expected
    if head.NAME == "MaskFormerHead" and head.PIXEL_DECODER_NAME == "PROSCALE":
        # The progressive encoder has a stage for every level that joins.
        node, levels = cfg.MODEL.PROSCALE, head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
        expected = f"one number for each of the encoder's {len(levels)} levels {levels}"
        fits = len(node.PROSCALE_NUM_LAYERS) == len(levels)
        yield fits, "MODEL.PROSCALE.PROSCALE_NUM_LAYERS", expected
        fits = node.IS_EXCITE_CONV is not None or node.RECALIBRATION != "transposed"
        expected = "none with IS_EXCITE_CONV None, which means no recalibration"
        yield fits, "MODEL.PROSCALE.RECALIBRATION", expected
        # A budget is a number of layers of each stage; of a stage that has layers at least one.
        most = list(node.PROSCALE_NUM_LAYERS)
        expected = f"layers of each stage, from {[min(1, n) for n in most]} to {most}"
        fits = not node.BUDGET or _is_budget(node.BUDGET, most)
        yield fits, "MODEL.PROSCALE.BUDGET", f"{expected}, or []"
        fits = all(_is_budget(budget, most) for budget in node.GATE) and len(node.GATE) != 1
        yield fits, "MODEL.PROSCALE.GATE", f"two or more of {expected}, or []"
        fits = not (node.BUDGET and node.GATE)
        yield fits, "MODEL.PROSCALE.BUDGET", "[] with MODEL.PROSCALE.GATE, which chooses one"
        fits = not node.ELASTIC or any(count > 1 for count in node.PROSCALE_NUM_LAYERS)
        expected = "False where no stage has two layers, which is one budget only"
        yield fits, "MODEL.PROSCALE.ELASTIC", expected
    else:
        for key, off in (("ELASTIC", False), ("BUDGET", []), ("GATE", [])):
            expected = f"{off} unless MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME is PROSCALE"
            yield cfg.MODEL.PROSCALE[key] == off, f"MODEL.PROSCALE.{key}", expected
    if head.NAME == "MaskFormerHead" and head.PIXEL_DECODER_NAME == "RTDETRPixelDecoder":
        # A quarter of the channels each, as above; the pyramid adds maps of the encoder's width.
        encoder, node = cfg.MODEL.RT_DETR_ENCODER, "MODEL.RT_DETR_ENCODER"
        expected = f"the width of the pyramid, MODEL.SEM_SEG_HEAD.CONVS_DIM {head.CONVS_DIM}"
        yield encoder.HIDDEN_DIM == head.CONVS_DIM, f"{node}.HIDDEN_DIM", expected
        fits = encoder.HIDDEN_DIM % encoder.NHEADS == 0
        expected = f"a divisor of HIDDEN_DIM, {encoder.HIDDEN_DIM}"
        yield fits, f"{node}.NHEADS", expected
        levels = head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
        fits = set(encoder.USE_ENCODER_LEVELS) <= set(levels)
        expected = f"some of the encoder's levels {levels}"
        yield fits, f"{node}.USE_ENCODER_LEVELS", expected
        fits = 1 <= int(encoder.HIDDEN_DIM * encoder.EXPANSION) <= 8192
        expected = f"numbers that make 1 to 8192 channels of HIDDEN_DIM, {encoder.HIDDEN_DIM}"
        yield fits, f"{node}.EXPANSION", expected
    if head.NAME == "MaskFormerHead" and head.PIXEL_DECODER_NAME == "LiteDETRPixelDecoder":
        # Blocks of equal length; fine levels, which the layers before the last leave.
        node, levels = cfg.MODEL.LITE_DETR, head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
        expected = f"multiples of MODEL.LITE_DETR.NUM_BLOCKS, {node.NUM_BLOCKS}"
        yield node.NUM_LAYERS % node.NUM_BLOCKS == 0, "MODEL.LITE_DETR.NUM_LAYERS", expected
        expected = f"fewer than the encoder's {len(levels)} levels {levels}"
        fits = len(levels) > node.NUM_HIGH_LEVELS
        yield fits, "MODEL.LITE_DETR.NUM_HIGH_LEVELS", expected
    if cfg.MODEL.META_ARCHITECTURE == "Detector":
        yield from _detector_rules(cfg)
    fits = head.NAME != "SegFormerHead" or head.NORM in ("BN", "SyncBN")
    yield fits, "MODEL.SEM_SEG_HEAD.NORM", "BN or SyncBN with SegFormerHead"

    if cfg.MODEL.META_ARCHITECTURE == "PoseEstimator":
        # Every stage of the backbone halves the crop, five times from the first to the last.
        size = cfg.MODEL.POSE.INPUT_SIZE
        fits = len(size) == 2 and not any(side % 32 for side in size)
        yield fits, "MODEL.POSE.INPUT_SIZE", "[width, height], multiples of 32"

    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        node, names = cfg.MODEL.RESNETS, ["stem", "res2", "res3", "res4", "res5"]
        fits = bool(node.OUT_FEATURES) and set(node.OUT_FEATURES) <= set(names)
        yield fits, "MODEL.RESNETS.OUT_FEATURES", f"one or more of {names}"
        yield node.RES5_DILATION < 4, "MODEL.RESNETS.RES5_DILATION", "1 or 2"
        # Basic blocks have a fixed width, and neither groups nor dilation.
        fixed = {"RES2_OUT_CHANNELS": 64, "NUM_GROUPS": 1, "RES5_DILATION": 1}
        for key, number in fixed.items() if node.DEPTH < 50 else ():
            expected = f"{number} with MODEL.RESNETS.DEPTH {node.DEPTH}"
            yield node[key] == number, f"MODEL.RESNETS.{key}", expected

    if cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer":
        # Every stage doubles the width, and divides it among its heads.
        swin = cfg.MODEL.SWIN
        yield any(swin.DEPTHS), "MODEL.SWIN.DEPTHS", "one block or more"
        widths = [swin.EMBED_DIM * 2**stage for stage in range(len(swin.DEPTHS))]
        fits = len(swin.NUM_HEADS) == len(widths) and not any(map(mod, widths, swin.NUM_HEADS))
        expected = (
            "one number for each of the stages of "
            f"MODEL.SWIN.DEPTHS {swin.DEPTHS}, dividing their widths {widths}"
        )
        yield fits, "MODEL.SWIN.NUM_HEADS", expected
        # res2 has stride 4 with patches of 4 pixels, and every stage doubles it.
        names = [f"res{stage + 2}" for stage in range(len(widths))]
        fits = bool(swin.OUT_FEATURES) and set(swin.OUT_FEATURES) <= set(names)
        yield fits, "MODEL.SWIN.OUT_FEATURES", f"one or more of {names}"

    if cfg.MODEL.BACKBONE.NAME == "MixVisionTransformer":
        # Variants b0 to b5 have settings of their own.
        mit = cfg.MODEL.MIT
        for key in ("DEPTHS", "NUM_HEADS", "SR_RATIOS"):
            fits = bool(mit.VARIANT) or len(mit[key]) == 4
            yield fits, f"MODEL.MIT.{key}", "4 whole numbers from 1, one for each stage"
        # Imported here, because modeling is built on Detectron2's registries, like the keys.
        from proscale.modeling.backbones.token_merging_config import parse_token_merging

        try:
            parse_token_merging(mit.TOKEN_MERGING)
        except ConfigError as error:
            message = str(error).replace("token_merging", "MODEL.MIT.TOKEN_MERGING", 1)
            raise ConfigError(message) from error


def _detector_rules(cfg: CfgNode) -> Iterator[tuple[bool, str, str]]:
    """The rules of ``META_ARCHITECTURE: Detector``."""
    node, queries, lite = cfg.MODEL.DETECTOR, cfg.MODEL.MASK_FORMER, cfg.MODEL.LITE_DETR
    key = "MODEL.DETECTOR"
    # Group norm has 32 groups; heads divide the width.
    fits = queries.HIDDEN_DIM % 32 == queries.HIDDEN_DIM % queries.NHEADS == 0
    expected = f"multiples of 32 and of MODEL.MASK_FORMER.NHEADS, {queries.NHEADS}"
    yield fits, "MODEL.MASK_FORMER.HIDDEN_DIM", expected
    levels = cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
    expected = f"at least as many as the backbone's levels {levels}, and at most two more"
    yield 0 <= node.NUM_LEVELS - len(levels) <= 2, f"{key}.NUM_LEVELS", expected
    if node.ENCODER == "proscale":
        fits = len(node.PROSCALE_NUM_LAYERS) == node.NUM_LEVELS
        expected = f"one number for each of the encoder's {node.NUM_LEVELS} levels"
        yield fits, f"{key}.PROSCALE_NUM_LAYERS", expected
    if node.ENCODER == "lite":
        expected = f"multiples of MODEL.LITE_DETR.NUM_BLOCKS, {lite.NUM_BLOCKS}"
        yield lite.NUM_LAYERS % lite.NUM_BLOCKS == 0, "MODEL.LITE_DETR.NUM_LAYERS", expected
        expected = f"fewer than the encoder's {node.NUM_LEVELS} levels"
        fits = node.NUM_LEVELS > lite.NUM_HIGH_LEVELS
        yield fits, "MODEL.LITE_DETR.NUM_HIGH_LEVELS", expected
    fits = node.BOX_REFINEMENT or node.QUERIES == "learned"
    yield fits, f"{key}.BOX_REFINEMENT", f"True with {key}.QUERIES {node.QUERIES}"


def _is_budget(budget: Any, most: Sequence[int]) -> bool:
    return (
        isinstance(budget, (list, tuple))
        and len(budget) == len(most)
        and all(
            isinstance(count, int) and min(1, bound) <= count <= bound
            for count, bound in zip(budget, most, strict=True)
        )
    )
