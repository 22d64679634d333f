"""Checkpoints between naming schemes.

Every scheme is a table of rules; :data:`SCHEMES` lists them. This project's own names are those of
Mask2Former and PRO-SCALE, ``backbone.…`` and ``sem_seg_head.…``; heads of other tasks begin with
names of their own.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proscale.checkpoint import detr, imagenet, mask2former, rt_detr, segformer, timm
from proscale.checkpoint.rules import NamingScheme
from proscale.errors import CheckpointError, printable

PROSCALE = "proscale"
SCHEMES: dict[str, tuple[NamingScheme, ...]] = {
    "openmmlab": (segformer.OPENMMLAB,),
    "nvidia": (segformer.NVIDIA,),
    "huggingface": (
        segformer.HUGGINGFACE,
        mask2former.HUGGINGFACE,
        rt_detr.HUGGINGFACE,
        detr.HUGGINGFACE,
        detr.HUGGINGFACE_TIMM,
    ),
    "transformers": (
        segformer.HUGGINGFACE_IN_MEMORY,
        mask2former.HUGGINGFACE_IN_MEMORY,
        rt_detr.HUGGINGFACE_IN_MEMORY,
        detr.HUGGINGFACE_IN_MEMORY,
    ),
    "rt_detr": (rt_detr.RT_DETR,),
    "dino": (detr.DINO,),
    "deformable_detr": (detr.DEFORMABLE_DETR,),
    "detectron2": (imagenet.DETECTRON2,),
    "torchvision": (imagenet.TORCHVISION,),
    "microsoft": (imagenet.MICROSOFT,),
    "moby": (imagenet.MOBY,),
    "timm": (imagenet.TIMM_SWIN,),
    "efficientnet_lite0": (timm.EFFICIENTNET_LITE0,),
}
"""By name, besides :data:`PROSCALE`, for each kind of model that the scheme has names for.

``huggingface`` are the names in files, ``transformers`` those of ``state_dict()`` in Transformers
5; ``microsoft`` and ``moby`` are their authors' Swin Transformers, supervised and self-supervised.
"""

CONTAINERS = ("state_dict", "model")
ARRAYS = (Tensor, np.ndarray, np.number, np.bool_)
"""Types of values in a checkpoint that are taken for tensors."""
_DATA_PARALLEL = "module."
_BACKBONE, _HEADS = "backbone.", ("sem_seg_head.", "pose_head.", "detection_head.")


@dataclass(frozen=True)
class Conversion:
    """A checkpoint under other names.

    Attributes:
        state_dict: the tensors.
        unknown: names that have no counterpart. Under this project's names they are kept in
            ``state_dict`` as they are, so that a loader reports them; under others they are left
            out.
        source: the scheme it had.
        settings: configuration that goes with such weights, by key, where the scheme implies it.
    """

    state_dict: dict[str, Tensor]
    unknown: list[str]
    source: str
    settings: Mapping[str, object] = field(default_factory=dict)


def convert_state_dict(state_dict: Mapping[str, Any], to: str = PROSCALE) -> dict[str, Tensor]:
    """Convert a checkpoint of a known naming scheme.

    Args:
        state_dict: tensors by name, of a whole model or a backbone alone; also below the key
            ``state_dict`` or ``model``, and with ``module.`` before every name.
        to: a key of :data:`SCHEMES`, or ``proscale``.

    Returns:
        the tensors under the names of ``to``; see :class:`Conversion` for what is unknown. In other
        schemes than this project's a backbone alone gets the names it has without a head.

    Raises:
        CheckpointError: the scheme is not known, or tensors of the model have no counterpart in
            ``to``, such as a head of another form.
    """
    return convert(state_dict, to=to).state_dict


def convert(
    state_dict: Mapping[str, Any],
    *,
    to: str = PROSCALE,
    model: Collection[str] = (),
    file: str | Path = "state_dict",
) -> Conversion:
    """As :func:`convert_state_dict`, with the names that have no counterpart.

    Args:
        state_dict, to: see there.
        model: names of the tensors of the model that it is for, where it is known. A model with a
            network of timm takes timm's names.
        file: named in errors.
    """
    if to != PROSCALE and to not in SCHEMES:
        raise CheckpointError(
            f"there is no naming scheme {to!r}: expected {', '.join((PROSCALE, *SCHEMES))}"
        )
    # Recognise the scheme by its names.
    state = tensors_of(state_dict)
    source, scheme = recognise(state)
    if is_timm_model(model) and source not in (PROSCALE, "efficientnet_lite0"):
        return Conversion(*timm.to_network(state, model), source="timm")
    if source is None:
        found = ", ".join(map(printable, list(state)[:3])) or "none at all"
        raise CheckpointError(
            f"{file}: names of no known scheme ({', '.join((PROSCALE, *SCHEMES))}): {found}, …"
        )
    # To this project's names, by which all conversions go.
    unknown: list[str] = []
    settings: Mapping[str, object] = {}
    if scheme is not None:
        converted, unknown = _translate(scheme, state, file, to_ours=True)
        state = converted | {name: state[name] for name in unknown}
        settings = scheme.settings
    # Names without a counterpart stay as they are, so that a loader can report them.
    if to == PROSCALE:
        return Conversion(state, unknown, source, settings)

    # To the other scheme: that of the kind of model which leaves the least out.
    is_whole = any(name.startswith(_HEADS) for name in state)
    converted, left = min(
        (
            _translate(kind, state, file, to_ours=False, with_prefix=is_whole)
            for kind in SCHEMES[to]
        ),
        key=lambda result: len(result[1]),
    )
    # Strangers in the file, such as a classifier's head, may be left out; parts of a model not.
    ours = [name for name in left if name.startswith((_BACKBONE, *_HEADS)) and name not in unknown]
    if ours:
        raise CheckpointError(
            f"{file}: scheme {to} has no names for {len(ours)} tensors of the model: "
            f"{', '.join(ours[:3])}, …"
        )
    return Conversion(converted, left, source, settings)


def _translate(
    scheme: NamingScheme, state: Mapping[str, Tensor], file: str | Path, **direction: bool
) -> tuple[dict[str, Tensor], list[str]]:
    try:
        return scheme.translate(state, **direction)
    # Of tensors that are concatenated, split or reshaped.
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = printable(str(error).partition("\n")[0])
        raise CheckpointError(
            f"{file}: its tensors have other shapes than their names say: {reason}"
        ) from error


def recognise(names: Collection[str]) -> tuple[str | None, NamingScheme | None]:
    """The key of the scheme of ``names`` and the scheme; for this project's names ``proscale`` and
    None, for others None and None."""
    for key, kinds in SCHEMES.items():
        for scheme in kinds:
            if any(mark.pattern.fullmatch(name) for mark in scheme.marks for name in names):
                return key, scheme
    return PROSCALE if any(name.startswith((_BACKBONE, *_HEADS)) for name in names) else None, None


def is_timm_model(names: Collection[str]) -> bool:
    """Whether the model with these ``names`` has a network of timm."""
    return any(name.startswith(timm.NETWORK) for name in names)


def container_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of ``checkpoint`` that has the tensors."""
    # RT-DETR's authors publish running averages of them, a level deeper.
    average = checkpoint.get("ema")
    if isinstance(average, Mapping) and isinstance(average.get("module"), Mapping):
        return average["module"]
    # Trainers keep them below a key, beside the optimiser's state and the iteration.
    inner = (checkpoint.get(key) for key in CONTAINERS)
    return next((value for value in inner if isinstance(value, Mapping)), checkpoint)


def tensors_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name in ``checkpoint``, out of their container and without ``module.``.

    Values that are neither tensors nor arrays are left out.
    """
    checkpoint = container_of(checkpoint)
    return {
        # A copy, because arrays out of pickles may be read-only.
        name.removeprefix(_DATA_PARALLEL): torch.tensor(tensor)
        if not isinstance(tensor, Tensor)
        else tensor
        for name, tensor in checkpoint.items()
        if isinstance(name, str) and isinstance(tensor, ARRAYS)
    }
