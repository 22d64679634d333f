"""The user's own data: the blocks of ``DATASETS.OWN``, and the keys that follow from them.

A block describes one data set of the user's, its training split, its validation split or both:

    DATASETS:
      OWN:
        - NAME: pets
          TASK: semantic
          TRAIN: {IMAGES: pets/train, MASKS: pets/train_labels}
          VAL: {IMAGES: pets/val, MASKS: pets/val_labels}

Data sets to train and test on, the mapper, the results and the size of the class layer follow from
the blocks. Keys that the user sets along with them, in the same file, in one based on it or on the
command line, are kept; those of a file that it is based on describe another data set.
"""

import difflib
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from proscale.config.own_labels import KEYS as LABEL_KEYS
from proscale.config.own_labels import OwnLabels, parse_labels
from proscale.config.schema import set_value, value_of
from proscale.errors import ConfigError, shown
from proscale.utils.untrusted import is_name

KEY = "DATASETS.OWN"
SPLITS = ("TRAIN", "VAL")

# By task: the mapper, and the paths of a split.
_TASKS = {
    "panoptic": ("coco_panoptic_lsj", ("IMAGES", "ANNOTATIONS", "MASKS", "INSTANCES")),
    "instance": ("coco_instance_lsj", ("IMAGES", "ANNOTATIONS")),
    "semantic": ("mask_former_semantic", ("IMAGES", "MASKS")),
    "detection": ("detr_detection", ("IMAGES", "ANNOTATIONS")),
    # A pose estimator has one mapper, which is not chosen by name.
    "keypoints": ("", ("IMAGES", "ANNOTATIONS")),
}
TASKS = tuple(_TASKS)
# By meta-architecture the tasks that it is trained for; others are segmenters.
_MODEL_TASKS = {"Detector": ("detection", "instance"), "PoseEstimator": ("keypoints",)}
_SEGMENTATION = ("panoptic", "instance", "semantic")
_FOLDERS = ("IMAGES", "MASKS")  # the other paths are those of files
_OPTIONAL = ("INSTANCES",)

_COMMON_KEYS = ("NAME", "TASK", "ROOT", *SPLITS)
# Keys of one task alone, and where it is told in others.
_TASK_KEYS = {
    "semantic": (*LABEL_KEYS, "IMAGE_SUFFIX", "MASK_SUFFIX"),
    "keypoints": ("FLIP_PAIRS", "SIGMAS"),
}

_MAX_SIGMA = 10

_NUM_CLASSES = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
_NUM_KEYPOINTS = "MODEL.POSE_HEAD.NUM_KEYPOINTS"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnSplit:
    """Paths of a split, None where its task has none; ``name`` ends with ``_train`` or ``_val``."""

    name: str
    images: Path
    annotations: Path | None = None
    masks: Path | None = None
    instances: Path | None = None


@dataclass(frozen=True)
class OwnDataset:
    """One block, whose full name is ``where``.

    Attributes:
        task: one of ``TASKS``.
        splits: by their key, one of ``SPLITS``; at least one.
        labels: what the pixels of semantic label images mean.
        image_suffix, mask_suffix: see ``semantic_metadata``; None takes those found.
        flip_pairs: (left, right) names of keypoints; None takes those that the names tell.
        sigmas: tolerances of the keypoints, see ``keypoint_metadata``; None takes 0.1 for each.
    """

    where: str
    name: str
    task: str
    splits: Mapping[str, OwnSplit]
    labels: OwnLabels
    image_suffix: str | None
    mask_suffix: str | None
    flip_pairs: tuple[tuple[str, str], ...] | None
    sigmas: tuple[float, ...] | None


def parse_blocks(blocks: Sequence[Any]) -> list[OwnDataset]:
    """Check and type the value of ``DATASETS.OWN``.

    Paths may begin with ``~`` and hold ``$VARIABLES``; relative ones are below ``ROOT``, and that
    below the current folder.

    Raises:
        ConfigError: a key is unknown, missing or of the wrong type, a name is there twice, or a
            file or folder is missing.
    """
    datasets = [_parse_block(block, f"{KEY}[{i}]") for i, block in enumerate(blocks)]
    names = [dataset.name for dataset in datasets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{KEY} has the NAME {name} twice: expected each once")
    return datasets


def fit_to_own_data(cfg: CfgNode, datasets: Sequence[OwnDataset], kept: Collection[str]) -> None:
    """Set the keys that follow from ``DATASETS.OWN``, in place.

    Args:
        cfg: not frozen.
        datasets: of the blocks, registered with Detectron2.
        kept: keys that the user has set.

    Raises:
        ConfigError: the data sets in use differ in task or classes, or are for another kind of
            model; or ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` (of poses
            ``MODEL.POSE_HEAD.NUM_KEYPOINTS``) is kept and not the number of classes.
    """
    # Files were read for what a block leaves out: other processes need not.
    cfg.DATASETS.OWN = [
        {**_found(dataset), **block}
        for block, dataset in zip(cfg.DATASETS.OWN, datasets, strict=True)
    ]
    # 1. Data sets to train and to evaluate on.
    follows: dict[str, Any] = {
        f"DATASETS.{key}": tuple(d.splits[split].name for d in datasets if split in d.splits)
        for key, split in (("TRAIN", "TRAIN"), ("TEST", "VAL"))
    }
    chosen = [value_of(cfg, key) if key in kept else names for key, names in follows.items()]
    names_in_use = {name for names in chosen for name in names}
    splits = ((split, dataset) for dataset in datasets for split in dataset.splits.values())
    in_use = {split.name: dataset for split, dataset in splits if split.name in names_in_use}
    # 2. Mapper, results and class layer, from the task and classes of the data sets in use.
    if in_use:
        (first, dataset), *others = in_use.items()
        task, classes = dataset.task, own_classes(first)
        for name, other in others:
            theirs = own_classes(name)
            if (other.task, theirs) != (task, classes):
                raise ConfigError(
                    f"{first} ({task}, {len(classes)} classes) and {name} ({other.task}, "
                    f"{len(theirs)} classes) are in use together: expected data sets of the same "
                    "task and classes: choose by DATASETS.TRAIN and DATASETS.TEST"
                )
        architecture = cfg.MODEL.META_ARCHITECTURE
        accepted = _MODEL_TASKS.get(architecture, _SEGMENTATION)
        if task not in accepted:
            raise ConfigError(
                f"{dataset.where}.TASK is {task}: expected {' or '.join(accepted)} with "
                f"MODEL.META_ARCHITECTURE {architecture}"
            )
        size_key = _NUM_KEYPOINTS if task == "keypoints" else _NUM_CLASSES
        follows |= _results(task, architecture, list(in_use.values()))
        follows[size_key] = len(classes)
        kept_size = value_of(cfg, size_key)
        if size_key in kept and len(classes) != kept_size:
            names = "keypoints" if task == "keypoints" else "classes"
            raise ConfigError(
                f"{size_key} is {kept_size}, but {', '.join(in_use)} have {len(classes)} {names}: "
                f"expected {len(classes)}, or the key left out"
            )
    else:
        logger.warning("None of the data sets of %s is in DATASETS.TRAIN or DATASETS.TEST", KEY)
    # 3. The user's own values take precedence.
    for key, value in follows.items():
        if key not in kept:
            set_value(cfg, key, value)


def _found(dataset: OwnDataset) -> dict[str, Any]:
    """Keys of a semantic block with what its files told."""
    found: dict[str, Any] = {"IMAGE_SUFFIX": dataset.image_suffix}
    found["MASK_SUFFIX"] = dataset.mask_suffix
    if dataset.labels.classes and dataset.labels.table is None:
        found["CLASSES"] = list(dataset.labels.classes)
    return {key: value for key, value in found.items() if value is not None}


def _results(task: str, architecture: str, in_use: Sequence[OwnDataset]) -> dict[str, Any]:
    """The mapper and the results that follow from a task, by their keys."""
    if task == "keypoints":
        return {}
    # The boxes of instances serve for detection.
    mapper = _TASKS["detection" if architecture == "Detector" else task][0]
    follows: dict[str, Any] = {"INPUT.DATASET_MAPPER_NAME": mapper}
    if architecture == "Detector":
        return follows
    splits = [split for dataset in in_use for split in dataset.splits.values()]
    has_instances = all(split.instances is not None for split in splits)
    return follows | {
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": task == "panoptic",
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": task == "instance" or has_instances,
        "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": task != "instance",
    }


def _parse_block(block: Any, where: str) -> OwnDataset:
    if not isinstance(block, Mapping):
        raise ConfigError(f"{where} is {block!r}: expected a block with {', '.join(_COMMON_KEYS)}")
    _check_keys(block, (*_COMMON_KEYS, *chain(*_TASK_KEYS.values())), where)
    name = _string(block, "NAME", where)
    # Results are in a folder of this name.
    if not re.fullmatch(r"[\w-]{1,100}", name):
        expected = "expected letters, digits, '_' and '-', at most 100"
        raise ConfigError(f"{where}.NAME is {name!r}: {expected}")
    task = _string(block, "TASK", where)
    if task not in TASKS:
        raise ConfigError(f"{where}.TASK is {task!r}: expected {', '.join(TASKS)}")
    for of_task, keys in _TASK_KEYS.items():
        for key in keys:
            if key in block and task != of_task:
                raise ConfigError(f"{where}.{key} is for TASK {of_task} only; TASK is {task}")
    # Relative paths are relative to ROOT, and ROOT to the current folder.
    root = _path(_string(block, "ROOT", where, default="."), f"{where}.ROOT")
    splits = {
        key: _parse_split(block[key], task, root, f"{where}.{key}", f"{name}_{key.lower()}")
        for key in SPLITS
        if key in block
    }
    if not splits:
        raise ConfigError(f"{where} has neither TRAIN nor VAL: expected one of them or both")
    return OwnDataset(
        where=where,
        name=name,
        task=task,
        splits=splits,
        labels=parse_labels(block, where),
        image_suffix=_suffix(block, "IMAGE_SUFFIX", where),
        mask_suffix=_suffix(block, "MASK_SUFFIX", where),
        flip_pairs=_flip_pairs(block, where),
        sigmas=_sigmas(block, where),
    )


def _flip_pairs(block: Mapping[str, Any], where: str) -> tuple[tuple[str, str], ...] | None:
    if "FLIP_PAIRS" not in block:
        return None
    pairs = block["FLIP_PAIRS"]
    are_pairs = isinstance(pairs, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(is_name, pair))
        for pair in pairs
    )
    names = list(chain(*pairs)) if are_pairs else []
    if not are_pairs or len(set(names)) < len(names):
        expected = "expected a list of [left, right], names of keypoints, each once"
        raise ConfigError(f"{where}.FLIP_PAIRS is {shown(pairs)}: {expected}")
    return tuple((left, right) for left, right in pairs)


def _sigmas(block: Mapping[str, Any], where: str) -> tuple[float, ...] | None:
    if "SIGMAS" not in block:
        return None
    sigmas = block["SIGMAS"]
    is_list = isinstance(sigmas, (list, tuple)) and len(sigmas) > 0
    if not is_list or not all(type(v) in (int, float) and 0 < v <= _MAX_SIGMA for v in sigmas):
        expected = (
            f"expected a list of numbers above 0, at most {_MAX_SIGMA}, one for each keypoint"
        )
        raise ConfigError(f"{where}.SIGMAS is {shown(sigmas)}: {expected}")
    return tuple(map(float, sigmas))


def _parse_split(value: Any, task: str, root: Path, where: str, name: str) -> OwnSplit:
    accepted = _TASKS[task][1]
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}: expected a block with {', '.join(accepted)}")
    _check_keys(value, accepted, where)
    paths = {}
    for key in accepted:
        if key not in value and key in _OPTIONAL:
            continue
        path = root / _path(_string(value, key, where), f"{where}.{key}")
        # Not Path.is_file, which raises errors for names that are too long.
        is_folder = key in _FOLDERS
        kind = "folder" if is_folder else "file"
        if not (os.path.isdir(path) if is_folder else os.path.isfile(path)):
            raise ConfigError(f"{where}.{key}: there is no {kind} {path}")
        paths[key.lower()] = path
    return OwnSplit(name, **paths)


def _check_keys(block: Mapping[str, Any], accepted: Collection[str], where: str) -> None:
    for key in block:
        if key not in accepted:
            nearest = difflib.get_close_matches(str(key).upper(), accepted, n=1)
            hint = "".join(f" (did you mean {name}?)" for name in nearest)
            expected = ", ".join(accepted)
            raise ConfigError(f"there is no key {where}.{key}{hint}: expected {expected}")


def _string(block: Mapping[str, Any], key: str, where: str, *, default: str | None = None) -> str:
    if key not in block and default is None:
        raise ConfigError(f"{where} has no {key}, which must be given")
    value = block.get(key, default)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where}.{key} is {value!r}: expected a text")
    return value


def _suffix(block: Mapping[str, Any], key: str, where: str) -> str | None:
    if key not in block:
        return None
    value = _string(block, key, where)
    if "/" in value or "\0" in value:
        raise ConfigError(f"{where}.{key} is {value!r}: expected the ending of a file's name")
    return value


def _path(text: str, where: str) -> Path:
    # Unset variables stay as they are.
    expanded = os.path.expandvars(text)
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        raise ConfigError(f"{where} is {text}, but the environment variable {unset[1]} is not set")
    return Path(os.path.expanduser(expanded))


def own_classes(split: str) -> tuple[str, ...]:
    """Names of all classes of a registered split by their contiguous ids; of poses those of their
    keypoints."""
    metadata = MetadataCatalog.get(split)
    # Panoptic data sets list things among the classes of stuff, too.
    names = metadata.get("keypoint_names") or metadata.get("stuff_classes")
    return tuple(names or metadata.thing_classes)
