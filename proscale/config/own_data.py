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
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from proscale.config.schema import set_value, value_of
from proscale.data.formats.semantic_folders import MASK_SUFFIX
from proscale.errors import ConfigError
from proscale.utils.untrusted import is_name

KEY = "DATASETS.OWN"
SPLITS = ("TRAIN", "VAL")

# By task: the mapper, and the paths of a split.
_TASKS = {
    "panoptic": ("coco_panoptic_lsj", ("IMAGES", "ANNOTATIONS", "MASKS", "INSTANCES")),
    "instance": ("coco_instance_lsj", ("IMAGES", "ANNOTATIONS")),
    "semantic": ("mask_former_semantic", ("IMAGES", "MASKS")),
}
TASKS = tuple(_TASKS)
_FOLDERS = ("IMAGES", "MASKS")  # the other paths are those of files
_OPTIONAL = ("INSTANCES",)

_COMMON_KEYS = ("NAME", "TASK", "ROOT", *SPLITS)
_SEMANTIC_KEYS = ("CLASSES", "IMAGE_SUFFIX", "MASK_SUFFIX")

_NUM_CLASSES = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"

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
        ConfigError: the data sets in use differ in task or classes; or
            ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` is kept and not the number of classes.
    """
    # Label images were read for these names: other processes need not.
    cfg.DATASETS.OWN = [
        {**block, "CLASSES": list(dataset.classes)} if dataset.classes else block
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
        splits_in_use = [split for d in in_use.values() for split in d.splits.values()]
        has_instances = all(split.instances is not None for split in splits_in_use)
        follows |= {
            "INPUT.DATASET_MAPPER_NAME": _TASKS[task][0],
            "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": task == "panoptic",
            "MODEL.MASK_FORMER.TEST.INSTANCE_ON": task == "instance" or has_instances,
            "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": task != "instance",
            _NUM_CLASSES: len(classes),
        }
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if _NUM_CLASSES in kept and len(classes) != num_classes:
            raise ConfigError(
                f"{_NUM_CLASSES} is {num_classes}, but {', '.join(in_use)} have {len(classes)} "
                f"classes: expected {len(classes)}, or the key left out"
            )
    else:
        logger.warning("None of the data sets of %s is in DATASETS.TRAIN or DATASETS.TEST", KEY)
    # 3. The user's own values take precedence.
    for key, value in follows.items():
        if key not in kept:
            set_value(cfg, key, value)


def _parse_block(block: Any, where: str) -> OwnDataset:
    if not isinstance(block, Mapping):
        raise ConfigError(f"{where} is {block!r}: expected a block with {', '.join(_COMMON_KEYS)}")
    _check_keys(block, (*_COMMON_KEYS, *_SEMANTIC_KEYS), where)
    name = _string(block, "NAME", where)
    # Results are in a folder of this name.
    if not re.fullmatch(r"[\w-]{1,100}", name):
        expected = "expected letters, digits, '_' and '-', at most 100"
        raise ConfigError(f"{where}.NAME is {name!r}: {expected}")
    task = _string(block, "TASK", where)
    if task not in TASKS:
        raise ConfigError(f"{where}.TASK is {task!r}: expected {', '.join(TASKS)}")
    for key in _SEMANTIC_KEYS:
        if key in block and task != "semantic":
            instead = f"with TASK {task} names come from ANNOTATIONS"
            raise ConfigError(f"{where}.{key} is for TASK semantic only; {instead}")
    # Relative paths are relative to ROOT, and ROOT to the current folder.
    root = _path(_string(block, "ROOT", where, default="."), f"{where}.ROOT")
    splits = {
        key: _parse_split(block[key], task, root, f"{where}.{key}", f"{name}_{key.lower()}")
        for key in SPLITS
        if key in block
    }
    if not splits:
        raise ConfigError(f"{where} has neither TRAIN nor VAL: expected one of them or both")
    classes: Any = block.get("CLASSES")
    if "CLASSES" in block:
        is_list = isinstance(classes, (list, tuple)) and len(classes) > 0
        if not is_list or not all(map(is_name, classes)):
            expected = "a list of texts on one line, the names of the labels 0, 1, …"
            raise ConfigError(f"{where}.CLASSES is {classes!r}: expected {expected}")
        if len(set(classes)) < len(classes):
            raise ConfigError(f"{where}.CLASSES has a name twice: expected each once")
    return OwnDataset(
        where=where,
        name=name,
        task=task,
        splits=splits,
        classes=tuple(classes) if classes else None,
        image_suffix=_suffix(block, "IMAGE_SUFFIX", where) if "IMAGE_SUFFIX" in block else None,
        mask_suffix=_suffix(block, "MASK_SUFFIX", where, default=MASK_SUFFIX),
    )


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


def _suffix(block: Mapping[str, Any], key: str, where: str, *, default: str | None = None) -> str:
    value = _string(block, key, where, default=default)
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
    """Names of all classes of a registered split by their contiguous ids."""
    metadata = MetadataCatalog.get(split)
    # Panoptic data sets list things among the classes of stuff, too.
    return tuple(metadata.get("stuff_classes") or metadata.thing_classes)
