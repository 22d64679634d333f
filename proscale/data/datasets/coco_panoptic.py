"""Registers data sets in COCO's panoptic format with Detectron2's catalogs.

Detectron2 registers COCO itself, with categories that it knows by heart. Here everything comes from
the annotation file, so that any data set in the format works, and a data set can be restricted to
some of its images.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from proscale.data.formats.coco_format import PANOPTIC_CATEGORIES, read_categories, read_panoptic
from proscale.data.formats.data_folder import DataFolder
from proscale.errors import DataError

logger = logging.getLogger(__name__)


def register_coco_panoptic(
    name: str,
    *,
    image_root: str | Path,
    panoptic_root: str | Path,
    panoptic_json: str | Path,
    instances_json: str | Path | None = None,
) -> None:
    """Register a data set under ``name``, with the categories of its annotation file.

    Contiguous class ids are positions in the file's ``categories``, things first. As in
    Detectron2's COCO panoptic data sets, ``thing_classes`` and ``stuff_classes`` both list all
    classes, so that a contiguous id indexes either. Registering the same files again has no effect.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        image_root: folder of the images.
        panoptic_root: folder of the PNG files with segment ids.
        panoptic_json: annotations in COCO's panoptic format.
        instances_json: annotations in COCO's instance format; instance AP needs them.

    Raises:
        FileNotFoundError: there is no ``panoptic_json``.
        DataError: it has no categories or lists an id twice.
        ValueError: ``name`` is taken by other files.
    """
    metadata = panoptic_metadata(
        read_categories(panoptic_json, PANOPTIC_CATEGORIES),
        image_root=image_root,
        panoptic_root=panoptic_root,
        panoptic_json=panoptic_json,
        instances_json=instances_json,
    )
    register(name, metadata)


def register(
    name: str, metadata: Mapping[str, Any], *, image_ids: Sequence[int] | None = None
) -> None:
    """Register ``metadata`` and the loading of what it describes under ``name``.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        metadata: as from ``panoptic_metadata``.
        image_ids: the data set consists of these images only, in this order; ``None`` takes all.
            Kept as the metadata's ``image_ids``.

    Raises:
        ValueError: ``name`` is registered with other metadata.
    """
    metadata = dict(metadata)
    if image_ids is not None:
        metadata["image_ids"] = tuple(image_ids)
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name).as_dict()
        # Evaluators may add keys of their own, so only those that are set here are compared.
        if any(known.get(key) != metadata.get(key) for key in (*metadata, "image_ids")):
            raise ValueError(
                f"data set {name} is already registered, with panoptic_json "
                f"{known.get('panoptic_json')}; choose another name"
            )
        return
    DatasetCatalog.register(name, lambda: load_coco_panoptic(metadata))
    MetadataCatalog.get(name).set(**metadata)


def load_coco_panoptic(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of a data set, in Detectron2's format for panoptic data.

    Args:
        metadata: as from ``panoptic_metadata``, with or without ``image_ids``.

    Returns:
        for every image, ordered by its id or as in ``image_ids``: ``file_name``, ``height``,
        ``width``, ``image_id``, ``pan_seg_file_name``, and ``segments_info`` as in the annotation
        file, but with contiguous ``category_id``, and with ``isthing``.

    Raises:
        FileNotFoundError: there is no ``panoptic_json``.
        DataError: it is not of the format; an annotation has no image or unknown categories; a file
            name leads out of its folder; no annotation is there for one of ``image_ids``.
    """
    path = metadata["panoptic_json"]
    content = read_panoptic(path)
    images = {image["id"]: image for image in content["images"]}
    folders = DataFolder(metadata["image_root"]), DataFolder(metadata["panoptic_root"])
    entries = {
        annotation["image_id"]: _entry(
            annotation, images[annotation["image_id"]], *folders, metadata
        )
        for annotation in content["annotations"]
    }
    if "image_ids" not in metadata and len(entries) < len(images):
        logger.warning(
            "%s: %d of %d images have no annotation and are left out",
            path,
            len(images) - len(entries),
            len(images),
        )
    image_ids = metadata.get("image_ids", sorted(entries))
    missing = [image_id for image_id in image_ids if image_id not in entries]
    if missing:
        raise DataError(f"{path}: no annotations for the images with ids {missing}")
    return [entries[image_id] for image_id in image_ids]


def panoptic_metadata(
    categories: Sequence[Mapping[str, Any]],
    *,
    image_root: str | Path,
    panoptic_root: str | Path,
    panoptic_json: str | Path,
    instances_json: str | Path | None = None,
    things_first: bool = True,
) -> dict[str, Any]:
    """Detectron2's metadata of a panoptic data set: files, classes, and how to evaluate it.

    Args:
        categories: COCO's, with ``id``, ``name``, ``isthing`` and, if colours are given, ``color``.
        image_root, panoptic_root, panoptic_json, instances_json: see ``register_coco_panoptic``.
        things_first: give things the first contiguous ids, else keep the order of ``categories``.

    Raises:
        ValueError: there are no categories, or two with one id.
    """
    metadata: dict[str, Any] = {
        "image_root": str(image_root),
        "panoptic_root": str(panoptic_root),
        "panoptic_json": str(panoptic_json),
        "evaluator_type": "coco_panoptic_seg",
        "ignore_label": 255,
        "label_divisor": 1000,
    }
    if instances_json is not None:
        metadata["json_file"] = str(instances_json)
    ids = [category["id"] for category in categories]
    if not ids or len(set(ids)) != len(ids):
        raise ValueError(
            f"{panoptic_json}: categories must be there, each id once; their ids are {ids}"
        )
    ordered = sorted(categories, key=lambda category: things_first and not category["isthing"])
    names = [category["name"] for category in ordered]
    metadata |= {"thing_classes": names, "stuff_classes": names}
    if all("color" in category for category in ordered):
        colors = [list(category["color"]) for category in ordered]
        metadata |= {"thing_colors": colors, "stuff_colors": colors}
    for kind, isthing in (("thing", True), ("stuff", False)):
        metadata[f"{kind}_dataset_id_to_contiguous_id"] = {
            category["id"]: index
            for index, category in enumerate(ordered)
            if bool(category["isthing"]) == isthing
        }
    return metadata


def _entry(
    annotation: Mapping[str, Any],
    image: Mapping[str, Any],
    images: DataFolder,
    masks: DataFolder,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    path, image_id = metadata["panoptic_json"], annotation["image_id"]
    things = metadata["thing_dataset_id_to_contiguous_id"]
    stuff = metadata["stuff_dataset_id_to_contiguous_id"]
    segments = []
    for segment in annotation["segments_info"]:
        category = segment["category_id"]
        if category not in things and category not in stuff:
            raise DataError(
                f"{path}: segment {segment['id']} of image {image_id} has category_id {category}; "
                f"known are {sorted([*things, *stuff])}"
            )
        isthing = category in things
        contiguous = things[category] if isthing else stuff[category]
        segments.append({**segment, "category_id": contiguous, "isthing": isthing})
    where = f"{path}: file_name of"
    return {
        "file_name": images.file(image["file_name"], f"{where} image {image_id}"),
        "height": image["height"],
        "width": image["width"],
        "image_id": image_id,
        "pan_seg_file_name": masks.file(
            annotation["file_name"], f"{where} the annotation of image {image_id}"
        ),
        "segments_info": segments,
    }
