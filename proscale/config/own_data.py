"""The blocks of ``DATASETS.OWN``: what may stand in them, checked and typed.

A block describes one data set of the user's, its training split, its validation split or both:

    DATASETS:
      OWN:
        - NAME: pets
          TASK: semantic
          TRAIN: {IMAGES: pets/train, MASKS: pets/train_labels}
          VAL: {IMAGES: pets/val, MASKS: pets/val_labels}
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proscale.data.formats.semantic_folders import MASK_SUFFIX

KEY = "DATASETS.OWN"

SPLITS = ("TRAIN", "VAL")

# Paths of a split by task: whether it must be given, and whether it is a folder.
_PATHS: dict[str, dict[str, tuple[bool, bool]]] = {
    "panoptic": {
        "IMAGES": (True, True),
        "ANNOTATIONS": (True, False),
        "MASKS": (True, True),
        "INSTANCES": (False, False),
    },
    "instance": {"IMAGES": (True, True), "ANNOTATIONS": (True, False)},
    "semantic": {"IMAGES": (True, True), "MASKS": (True, True)},
}

TASKS = tuple(_PATHS)

_COMMON_KEYS = ("NAME", "TASK", "ROOT", *SPLITS)
_SEMANTIC_KEYS = ("CLASSES", "IMAGE_SUFFIX", "MASK_SUFFIX")


@dataclass(frozen=True)
class OwnSplit:
    """Where the parts of a split are; None is what its task does not have.

    Attributes:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``: the data set's, with ``_train`` or
            ``_val``.
    """

    name: str
    images: Path
    annotations: Path | None = None
    masks: Path | None = None
    instances: Path | None = None


@dataclass(frozen=True)
class OwnDataset:
    """One block.

    Attributes:
        where: the key it stands at, for messages.
        name: of the data set; those of its splits begin with it.
        task: one of ``TASKS``.
        splits: by their key, one of ``SPLITS``; at least one.
        classes: names of the labels 0, 1, … of a semantic data set; None takes those found.
        image_suffix, mask_suffix: see ``semantic_metadata``.
    """

    where: str
    name: str
    task: str
    splits: Mapping[str, OwnSplit]
    classes: tuple[str, ...] | None
    image_suffix: str | None
    mask_suffix: str


def parse_blocks(blocks: Sequence[Any]) -> list[OwnDataset]:
    """Check and type the value of ``DATASETS.OWN``.

    Paths may begin with ``~`` and hold ``$VARIABLES``; where they are relative, they are below
    ``ROOT``, and that below the current folder.

    Raises:
        ValueError: a key is unknown, missing or of the wrong type, a name is there twice, or a file
            or folder is not there; the message names the key and what is accepted.
    """
    datasets = [_parse_block(block, f"{KEY}[{i}]") for i, block in enumerate(blocks)]
    names = [dataset.name for dataset in datasets]
    for dataset in datasets:
        if names.count(dataset.name) > 1:
            raise ValueError(f"{KEY} has the NAME {dataset.name} twice: expected each once")
    return datasets


def _parse_block(block: Any, where: str) -> OwnDataset:
    if not isinstance(block, Mapping):
        raise ValueError(f"{where} is {block!r}: expected a block with {_listed(_COMMON_KEYS)}")
    _check_keys(block, (*_COMMON_KEYS, *_SEMANTIC_KEYS), where)
    name = _string(block, "NAME", where)
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"{where}.NAME is {name!r}: expected letters, digits, '_' and '-'")
    task = _string(block, "TASK", where)
    if task not in TASKS:
        raise ValueError(f"{where}.TASK is {task!r}: expected {_listed(TASKS)}")
    if task != "semantic":
        for key in _SEMANTIC_KEYS:
            if key in block:
                raise ValueError(
                    f"{where}.{key} is for TASK semantic only; with TASK {task} names come from "
                    "ANNOTATIONS"
                )
    root = _path(_string(block, "ROOT", where, default="."), f"{where}.ROOT")
    splits = {
        key: _parse_split(block[key], task, root, f"{where}.{key}", f"{name}_{key.lower()}")
        for key in SPLITS
        if key in block
    }
    if not splits:
        raise ValueError(f"{where} has neither TRAIN nor VAL: expected one of them or both")
    return OwnDataset(
        where=where,
        name=name,
        task=task,
        splits=splits,
        classes=_class_names(block, where),
        image_suffix=_string(block, "IMAGE_SUFFIX", where) if "IMAGE_SUFFIX" in block else None,
        mask_suffix=_string(block, "MASK_SUFFIX", where, default=MASK_SUFFIX),
    )


def _parse_split(value: Any, task: str, root: Path, where: str, name: str) -> OwnSplit:
    accepted = _PATHS[task]
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}: expected a block with {_listed(accepted)}")
    _check_keys(value, accepted, where)
    paths = {}
    for key, (is_required, is_folder) in accepted.items():
        if key not in value and not is_required:
            continue
        path = root / _path(_string(value, key, where), f"{where}.{key}")
        if not (path.is_dir() if is_folder else path.is_file()):
            raise ValueError(f"{where}.{key}: there is no {_kind(is_folder)} {path}")
        paths[key.lower()] = path
    return OwnSplit(name, **paths)


def _check_keys(block: Mapping[str, Any], accepted: Sequence[str], where: str) -> None:
    for key in block:
        if key not in accepted:
            nearest = difflib.get_close_matches(str(key).upper(), accepted, n=1)
            hint = f" (did you mean {nearest[0]}?)" if nearest else ""
            raise ValueError(f"there is no key {where}.{key}{hint}: expected {_listed(accepted)}")


def _string(block: Mapping[str, Any], key: str, where: str, *, default: str | None = None) -> str:
    if key not in block and default is None:
        raise ValueError(f"{where} has no {key}, which must be given")
    value = block.get(key, default)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}.{key} is {value!r}: expected a text")
    return value


def _path(text: str, where: str) -> Path:
    expanded = os.path.expandvars(text)
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        raise ValueError(f"{where} is {text}, but the environment variable {unset[1]} is not set")
    return Path(expanded).expanduser()


def _class_names(block: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    if "CLASSES" not in block:
        return None
    names = block["CLASSES"]
    is_list = isinstance(names, Sequence) and not isinstance(names, str) and len(names) > 0
    if not is_list or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{where}.CLASSES is {names!r}: expected a list of texts, the names of the labels "
            "0, 1, …"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{where}.CLASSES has a name twice: expected each once")
    return tuple(names)


def _kind(is_folder: bool) -> str:
    return "folder" if is_folder else "file"


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names)
