"""Registers the data sets that a configuration brings along in ``DATASETS.OWN``.

Classes, their number and colours come from the files of a data set.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from proscale.config.own_data import OwnDataset, OwnSplit, parse_blocks
from proscale.data.datasets.registration import (
    instance_metadata,
    keypoint_metadata,
    panoptic_metadata,
    register,
    semantic_metadata,
)
from proscale.data.formats.coco_format import (
    INSTANCE_CATEGORIES,
    PANOPTIC_CATEGORIES,
    check_skeleton,
    load_coco_instances,
    load_coco_keypoints,
    load_coco_panoptic,
    read_categories,
)
from proscale.data.formats.image_file import GREY_MODES, image_mode, read_palette
from proscale.data.formats.json_file import read_json
from proscale.data.formats.label_table import IGNORE_LABEL, MAX_CLASSES, LabelTable
from proscale.data.formats.problems import first_few
from proscale.data.formats.semantic_folders import (
    MASK_SUFFIX,
    count_labels,
    find_suffixes,
    load_semantic_folders,
    mask_files,
)
from proscale.errors import ConfigError, DataError

# Tolerance of a keypoint of which none is known; JBD's.
_SIGMA = 0.1

_logger = logging.getLogger(__name__)


def register_own_data(blocks: Sequence[Any]) -> list[OwnDataset]:
    """Register all splits of the blocks of ``DATASETS.OWN`` with Detectron2, in this process.

    Registering the same again has no effect. A semantic data set without class names has its label
    images read; the result has the names, so that other processes need not.

    Raises:
        ConfigError: a block is wrong, also in what it says of the keypoints in its files.
        DataError: a file has no usable categories; splits differ in their classes; or a name is
            taken by another data set.
    """
    by_task = {"semantic": _register_semantic, "keypoints": _register_keypoints}
    return [by_task.get(dataset.task, _register_coco)(dataset) for dataset in parse_blocks(blocks)]


def _register_coco(dataset: OwnDataset) -> OwnDataset:
    is_panoptic = dataset.task == "panoptic"
    keys = PANOPTIC_CATEGORIES if is_panoptic else INSTANCE_CATEGORIES
    files = [split.annotations for split in dataset.splits.values() if split.annotations]
    categories = [read_categories(file, keys) for file in files]
    classes = [{(c["id"], c["name"], bool(c.get("isthing", 1))) for c in cs} for cs in categories]
    # Splits must agree: a contiguous id means one class in both.
    differing = classes[0] ^ classes[-1]
    if differing:
        raise DataError(
            f"{files[0]} and {files[-1]} differ in the categories with ids "
            f"{sorted({id_ for id_, *_ in differing})}: expected the same id, name and isthing "
            "in both"
        )
    for split in dataset.splits.values():
        # The schema of the blocks requires the paths of a task.
        assert split.annotations is not None
        if is_panoptic:
            assert split.masks is not None
            metadata = panoptic_metadata(
                categories[0],
                image_root=split.images,
                panoptic_root=split.masks,
                panoptic_json=split.annotations,
                instances_json=split.instances,
            )
            register(split.name, load_coco_panoptic, metadata)
        else:
            metadata = instance_metadata(
                categories[0], image_root=split.images, json_file=split.annotations
            )
            # Detection needs no masks, and the check no look for them.
            metadata["has_masks"] = dataset.task == "instance"
            register(split.name, load_coco_instances, metadata)
    things = sum(isthing for *_, isthing in classes[0])
    message = "Own data %s: %s, %d classes, %d of them things"
    _logger.info(message, dataset.name, dataset.task, len(categories[0]), things)
    return dataset


def _register_keypoints(dataset: OwnDataset) -> OwnDataset:
    files = [split.annotations for split in dataset.splits.values() if split.annotations]
    skeletons = [check_skeleton(read_json(file), file) for file in files]
    category, names, links = skeletons[0]
    # Splits must agree: a keypoint's place means one part of the body in both.
    if any((c["id"], n) != (category["id"], names) for c, n, _ in skeletons):
        raise DataError(
            f"{files[0]} and {files[-1]} differ in the id or the keypoints of their category: "
            "expected the same in both"
        )
    pairs, sigmas = dataset.flip_pairs, dataset.sigmas
    if pairs is None:
        pairs = flip_pairs_by_name(names)
    if unknown := {name for pair in pairs for name in pair} - set(names):
        raise ConfigError(
            f"{dataset.where}.FLIP_PAIRS has {first_few(sorted(unknown))}: expected names of "
            f"keypoints, {first_few(names)}"
        )
    if sigmas is None:
        sigmas = (_SIGMA,) * len(names)
        message = "Own data %s: %s.SIGMAS is not given: AP is computed with %s for every keypoint"
        _logger.warning(message, dataset.name, dataset.where, _SIGMA)
    if len(sigmas) != len(names):
        raise ConfigError(
            f"{dataset.where}.SIGMAS has {len(sigmas)} numbers: expected {len(names)}, one for "
            "each keypoint"
        )
    for split, file in zip(dataset.splits.values(), files, strict=True):
        metadata = keypoint_metadata(
            category,
            names,
            flip_pairs=pairs,
            links=links,
            sigmas=sigmas,
            image_root=split.images,
            json_file=file,
        )
        register(split.name, load_coco_keypoints, metadata)
    message = "Own data %s: %d keypoints, %d pairs of left and right"
    _logger.info(message, dataset.name, len(names), len(pairs))
    return dataset


def flip_pairs_by_name(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(left, right) of the keypoints whose names begin with ``left`` and ``right``, or ``l`` and
    ``r``, and go on alike."""
    by_lower = {name.lower(): name for name in names}
    pairs: dict[str, tuple[str, str]] = {}
    for lower, name in by_lower.items():
        for left, right in (("left", "right"), ("l", "r")):
            other = by_lower.get(right + lower.removeprefix(left))
            if lower.startswith(left) and other is not None:
                pairs.setdefault(name, (name, other))
    return tuple(pairs.values())


def _register_semantic(dataset: OwnDataset) -> OwnDataset:
    dataset, labels = _with_suffixes(dataset), dataset.labels

    def metadata(
        split: OwnSplit,
        names: Sequence[str],
        colors: Sequence = (),
        label_table: LabelTable | None = None,
    ) -> dict[str, Any]:
        assert split.masks is not None
        assert dataset.mask_suffix is not None  # has been found
        return semantic_metadata(
            names,
            image_root=split.images,
            mask_root=split.masks,
            image_suffix=dataset.image_suffix,
            mask_suffix=dataset.mask_suffix,
            colors=colors,
            label_table=label_table,
        )

    # Classes and colours are those of all splits together.
    masks = [m for split in dataset.splits.values() for m in mask_files(metadata(split, ()))]
    names, table, ignored = labels.classes, labels.table, labels.ignored
    # Labels that occur are the classes; this reads every label image, once.
    if names is None:
        try:
            numbers = range(count_labels(masks, ignored))
        except DataError as error:
            raise DataError(f"{dataset.where}.CLASSES is not given, and {error}") from error
        names = tuple(f"class_{number}" for number in numbers if number not in ignored)
    if table is None and ignored != (IGNORE_LABEL,):
        if len(names) > MAX_CLASSES:
            raise DataError(
                f"{dataset.where}.IGNORE_LABEL leaves {len(names)} classes: expected {MAX_CLASSES} "
                "at most"
            )
        table = LabelTable.without(ignored, len(names))
    mode = ""
    colors: Sequence[Sequence[int]] = labels.colors
    # The first readable label image; the mapper names the unreadable ones.
    for mask in masks:
        with suppress(DataError):
            mode = image_mode(mask)
            # A palette is of the labels, which are not the class ids where there is a table.
            colors = colors if table else read_palette(mask)
            break
    if mode in GREY_MODES and not (table and table.in_color):
        _logger.info("Own data %s: label images have mode %s, read as grey", dataset.name, mode)
    for split in dataset.splits.values():
        register(split.name, load_semantic_folders, metadata(split, names, colors, table))
    _logger.info("Own data %s: semantic, %d classes", dataset.name, len(names))
    return replace(dataset, labels=replace(labels, classes=names))


def _with_suffixes(dataset: OwnDataset) -> OwnDataset:
    """The endings of file names that are not given, as they are found."""
    if dataset.mask_suffix is not None:
        return dataset
    folders = [(split.images, split.masks) for split in dataset.splits.values() if split.masks]
    try:
        image_suffix, mask_suffix = find_suffixes(folders, dataset.image_suffix)
    except DataError as error:
        raise DataError(
            f"{dataset.where}.MASK_SUFFIX is not given, and {error}: expected one of them"
        ) from error
    if mask_suffix != MASK_SUFFIX or image_suffix != dataset.image_suffix:
        message = "Own data %s: %s belongs to %s (IMAGE_SUFFIX, MASK_SUFFIX)"
        image = f"NAME{image_suffix or '.*'}"
        _logger.info(message, dataset.name, f"NAME{mask_suffix}", image)
    if mask_suffix.lower().endswith((".jpg", ".jpeg")):
        message = "Own data %s: label images are JPEG, which changes labels: expected PNG"
        _logger.warning(message, dataset.name)
    return replace(dataset, image_suffix=image_suffix, mask_suffix=mask_suffix)
