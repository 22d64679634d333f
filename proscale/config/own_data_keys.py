"""Fits a configuration to the user's own data: what follows from ``DATASETS.OWN``.

Data sets to train and test on, the mapper, which results to make, and the size of the class layer
follow from the blocks. What the user sets along with them, in the same file, in one based on it or
on the command line, is kept; what a file that it is based on says of another data set is not.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from proscale.config.files import read_config_file
from proscale.config.own_data import KEY, OwnDataset
from proscale.data.datasets.own import own_classes, register_own_data

_MAPPERS = {
    "panoptic": "coco_panoptic_lsj",
    "instance": "coco_instance_lsj",
    "semantic": "mask_former_semantic",
}

_NUM_CLASSES = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"

logger = logging.getLogger(__name__)


def fit_to_own_data(cfg: CfgNode, kept: Collection[str]) -> None:
    """Register the data sets of ``DATASETS.OWN`` and set what follows from them, in place.

    Set are ``DATASETS.TRAIN`` and ``TEST``, ``INPUT.DATASET_MAPPER_NAME``,
    ``MODEL.MASK_FORMER.TEST.{PANOPTIC,INSTANCE,SEMANTIC}_ON``, and
    ``MODEL.SEM_SEG_HEAD.NUM_CLASSES``; and in the blocks the ``CLASSES`` that were found, so that
    other processes and later runs need not look for them.

    Args:
        cfg: not frozen.
        kept: keys that the user has set.

    Raises:
        ValueError: see ``register_own_data``; the data sets in use differ in task or classes; or
            ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` is kept and not the number of classes.
    """
    datasets = register_own_data(cfg.DATASETS.OWN)
    cfg.DATASETS.OWN = [
        {**block, "CLASSES": list(dataset.classes)} if dataset.classes else block
        for block, dataset in zip(cfg.DATASETS.OWN, datasets, strict=True)
    ]
    for key, split in (("TRAIN", "TRAIN"), ("TEST", "VAL")):
        names = tuple(d.splits[split].name for d in datasets if split in d.splits)
        _set(cfg, f"DATASETS.{key}", names, kept)
    in_use = {
        split.name: dataset
        for dataset in datasets
        for split in dataset.splits.values()
        if split.name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    }
    if not in_use:
        logger.warning("None of the data sets of %s is in DATASETS.TRAIN or DATASETS.TEST", KEY)
        return
    task, classes = _common_task_and_classes(in_use)
    _set(cfg, "INPUT.DATASET_MAPPER_NAME", _MAPPERS[task], kept)
    results = {
        "PANOPTIC_ON": task == "panoptic",
        "INSTANCE_ON": task == "instance" or all(_has_instances(d) for d in in_use.values()),
        "SEMANTIC_ON": task != "instance",
    }
    for key, value in results.items():
        _set(cfg, f"MODEL.MASK_FORMER.TEST.{key}", value, kept)
    if _NUM_CLASSES in kept and len(classes) != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        raise ValueError(
            f"{_NUM_CLASSES} is {cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}, but {', '.join(in_use)} have "
            f"{len(classes)} classes; leave the key out, or accepted is {len(classes)}"
        )
    _set(cfg, _NUM_CLASSES, len(classes), kept)


def keys_set_by_user(config_file: str, overrides: Sequence[str]) -> set[str]:
    """Full names of the keys that are set along with ``DATASETS.OWN`` or on top of it.

    Args:
        config_file: YAML file, which can be read with all its bases; or the empty string.
        overrides: KEY VALUE pairs in a row, which come after the file.
    """
    keys = set(overrides[::2])
    if KEY not in keys and config_file:
        keys |= _keys_down_to_own_data(config_file)
    return keys


def _keys_down_to_own_data(file: str) -> set[str]:
    """Keys of a file and its bases as far as the one that sets the key; empty if none does."""
    content, bases = read_config_file(file)
    keys = set(_leaves(content))
    if KEY in keys:
        return keys
    for base in bases:
        below = _keys_down_to_own_data(base)
        if below:
            return keys | below
    return set()


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _common_task_and_classes(in_use: dict[str, OwnDataset]) -> tuple[str, tuple[str, ...]]:
    (first, dataset), *others = in_use.items()
    task, classes = dataset.task, own_classes(first)
    for name, other in others:
        if (other.task, own_classes(name)) != (task, classes):
            raise ValueError(
                f"{first} ({task}, {len(classes)} classes) and {name} ({other.task}, "
                f"{len(own_classes(name))} classes) are in use together: expected data sets of "
                "the same task and classes: choose by DATASETS.TRAIN and DATASETS.TEST"
            )
    return task, classes


def _has_instances(dataset: OwnDataset) -> bool:
    return all(split.instances is not None for split in dataset.splits.values())


def _set(cfg: CfgNode, key: str, value: Any, kept: Collection[str]) -> None:
    if key in kept:
        return
    *path, name = key.split(".")
    for part in path:
        cfg = cfg[part]
    cfg[name] = value
