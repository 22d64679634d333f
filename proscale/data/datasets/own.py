"""Registers the data sets that a configuration brings along in ``DATASETS.OWN``.

What a data set consists of is in its files: classes, their number and colours come from there. Both
splits of a data set have the same contiguous class ids.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from proscale.config.own_data import OwnDataset, OwnSplit, parse_blocks
from proscale.data.datasets.coco_instances import instance_metadata, load_coco_instances
from proscale.data.datasets.coco_panoptic import load_coco_panoptic, panoptic_metadata
from proscale.data.datasets.semantic_folders import (
    count_labels,
    load_semantic_folders,
    mask_files,
    semantic_metadata,
)
from proscale.data.formats.coco_format import (
    INSTANCE_CATEGORIES,
    PANOPTIC_CATEGORIES,
    read_categories,
)
from proscale.data.formats.label_image import read_palette

logger = logging.getLogger(__name__)


def register_own_data(blocks: Sequence[Any]) -> list[OwnDataset]:
    """Register all splits of all blocks with Detectron2, in this process.

    Registering the same again has no effect. A semantic data set without class names has its label
    images read; the result has the names, so that other processes need not.

    Args:
        blocks: the value of ``DATASETS.OWN``, see ``proscale.config.own_data``.

    Raises:
        ValueError: a block is wrong; a file has no usable categories; the splits of a data set
            differ in their classes; or a name is taken by another data set.
    """
    return [_register(dataset) for dataset in parse_blocks(blocks)]


def own_classes(name: str) -> tuple[str, ...]:
    """Names of all classes of a registered split by their contiguous ids."""
    metadata = MetadataCatalog.get(name)
    # Panoptic data sets list all classes in both.
    return tuple(metadata.get("stuff_classes") or metadata.thing_classes)


def _register(dataset: OwnDataset) -> OwnDataset:
    if dataset.task == "semantic":
        return _register_semantic(dataset)
    describe, load = _COCO_FORMATS[dataset.task]
    categories = _common_categories(dataset)
    for split in dataset.splits.values():
        _register_split(split.name, describe(categories, split), load)
    things = sum(bool(c.get("isthing", True)) for c in categories)
    logger.info(
        "Own data %s: %s, %d classes, %d of them things",
        dataset.name,
        dataset.task,
        len(categories),
        things,
    )
    return dataset


def _register_semantic(dataset: OwnDataset) -> OwnDataset:
    def metadata(split: OwnSplit, names: Sequence[str], colors: Sequence = ()) -> dict[str, Any]:
        return semantic_metadata(
            names,
            image_root=split.images,
            mask_root=split.masks,
            image_suffix=dataset.image_suffix,
            mask_suffix=dataset.mask_suffix,
            colors=colors,
        )

    masks = [m for split in dataset.splits.values() for m in mask_files(metadata(split, ()))]
    names = dataset.classes
    if names is None:
        try:
            names = tuple(f"class_{label}" for label in range(count_labels(masks)))
        except ValueError as error:
            raise ValueError(f"{dataset.where}.CLASSES is not given, and {error}") from error
    colors = _palette_colors(masks)
    for split in dataset.splits.values():
        _register_split(split.name, metadata(split, names, colors), load_semantic_folders)
    logger.info("Own data %s: semantic, %d classes", dataset.name, len(names))
    return replace(dataset, classes=names)


def _palette_colors(masks: Sequence[Path]) -> list[list[int]]:
    """Those of the first label image that can be read; who reads the others tells what is wrong."""
    for mask in masks:
        with suppress(ValueError):
            return read_palette(mask)
    return []


def _describe_panoptic(categories: Sequence[Mapping], split: OwnSplit) -> dict[str, Any]:
    return panoptic_metadata(
        categories,
        image_root=split.images,
        panoptic_root=split.masks,
        panoptic_json=split.annotations,
        instances_json=split.instances,
    )


def _describe_instances(categories: Sequence[Mapping], split: OwnSplit) -> dict[str, Any]:
    return instance_metadata(categories, image_root=split.images, json_file=split.annotations)


# How splits of a task are described and loaded.
_COCO_FORMATS: dict[str, tuple[Callable, Callable]] = {
    "panoptic": (_describe_panoptic, load_coco_panoptic),
    "instance": (_describe_instances, load_coco_instances),
}


def _common_categories(dataset: OwnDataset) -> list[dict[str, Any]]:
    """The categories of the data set, in the order of its first split."""
    keys = PANOPTIC_CATEGORIES if dataset.task == "panoptic" else INSTANCE_CATEGORIES
    first, *others = dataset.splits.values()
    categories = read_categories(first.annotations, keys)
    for other in others:
        theirs = _classes_by_id(read_categories(other.annotations, keys))
        differing = theirs.items() ^ _classes_by_id(categories).items()
        if differing:
            raise ValueError(
                f"{first.annotations} and {other.annotations} differ in the categories with ids "
                f"{sorted({id_ for id_, _ in differing})}: expected the same id, name and "
                "isthing in both"
            )
    return categories


def _classes_by_id(categories: Sequence[Mapping[str, Any]]) -> dict[int, tuple[str, bool]]:
    return {c["id"]: (c["name"], bool(c.get("isthing", True))) for c in categories}


def _register_split(name: str, metadata: dict[str, Any], load: Callable) -> None:
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name).as_dict()
        # Evaluators may add keys of their own.
        if any(known.get(key) != value for key, value in metadata.items()):
            raise ValueError(
                f"data set {name} is already registered, with other files; choose another NAME"
            )
        return
    DatasetCatalog.register(name, lambda: load(metadata))
    MetadataCatalog.get(name).set(**metadata)
