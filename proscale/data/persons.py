"""Top-down pose estimation: a sample is one person.

Detectron2's mappers give one sample for each entry, so that images are split into persons before:
a person's record is an entry with exactly one annotation.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from proscale.data.formats.json_file import BOX, ID, INTEGER, NUMBER, Keys, read_json_records
from proscale.data.formats.problems import first_few
from proscale.errors import DataError
from proscale.utils.untrusted import AnyPath

DETECTIONS: Keys = {"image_id": ID, "category_id": INTEGER, "bbox": BOX, "score": NUMBER}
"""Of an entry in a detector's file."""


def person_records(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Split images into persons, in their order.

    Left out are crowds, and annotations without a box, without labelled keypoints, with a box that
    has no size within the image, or with all keypoints at or beyond the upper left corner.

    Args:
        entries: in Detectron2's format for keypoints.

    Returns:
        for every person the entry, with ``annotations`` of this one alone, whose ``bbox`` is
        clipped to the image, XYXY.
    """
    records = []
    for entry in entries:
        for annotation in entry["annotations"]:
            if annotation.get("iscrowd", 0) or not _is_labelled(annotation):
                continue
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
            clipped = clipped_box(box, entry["height"], entry["width"])
            if clipped[2] > clipped[0] and clipped[3] > clipped[1]:
                person = {**annotation, "bbox": clipped, "bbox_mode": BoxMode.XYXY_ABS}
                records.append({**entry, "annotations": [person]})
    return records


def detected_records(
    entries: Iterable[Mapping[str, Any]], path: AnyPath, category_id: int
) -> list[dict[str, Any]]:
    """The persons that a detector found in these images, in the order of its file.

    Args:
        entries: in Detectron2's format.
        path: JSON list of objects with ``image_id``, ``category_id``, ``bbox`` [x, y, width,
            height] and ``score``, as COCO's files of results.
        category_id: that of persons in the file; others are left out.

    Returns:
        for every detection the entry, with one annotation that has ``bbox``, not clipped, and
        ``score``, and no ``id``, for there is no truth.

    Raises:
        DataError: the file is not of the format, or has boxes without size or of other images.
    """
    images = {entry["image_id"]: entry for entry in entries}
    records = []
    for place, found in enumerate(read_json_records(path, DETECTIONS)):
        if found["category_id"] != category_id:
            continue
        if found["image_id"] not in images:
            expected = first_few(images)
            raise DataError(
                f"{path}[{place}].image_id is {found['image_id']}: expected an image of the data "
                f"set, {expected}"
            )
        if min(found["bbox"][2:]) <= 0:
            raise DataError(
                f"{path}[{place}].bbox is {found['bbox']}: expected a width and height above 0"
            )
        person = {
            "bbox": found["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "score": found["score"],
        }
        records.append({**images[found["image_id"]], "annotations": [person]})
    return records


def evaluated_persons(cfg: CfgNode, dataset_name: str) -> list[dict[str, Any]]:
    """The persons of a data set that a pose estimator is evaluated on.

    Their boxes are the annotated ones, or those of ``DATASETS.PERSON_BOXES_TEST``.

    Raises:
        DataError: there are none; or see ``detected_records``.
    """
    entries, path = DatasetCatalog.get(dataset_name), cfg.DATASETS.PERSON_BOXES_TEST
    if path:
        ids = MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id
        records = detected_records(entries, path, category_id=min(ids))
    else:
        records = person_records(entries)
    if not records:
        expected = "expected persons with a box and, unless a detector found them, keypoints"
        raise DataError(f"{path or f'data set {dataset_name}'} has no persons: {expected}")
    return records


def clipped_box(box: Sequence[float], height: int, width: int) -> list[float]:
    """XYXY of a box [x, y, width, height] within the pixels of an image, 0 to its side - 1."""
    x, y, box_width, box_height = box
    corners = np.clip(
        [x, y, x + box_width, y + box_height], 0, [width - 1, height - 1, width - 1, height - 1]
    )
    return corners.tolist()


def _is_labelled(annotation: Mapping[str, Any]) -> bool:
    keypoints = annotation.get("keypoints")
    if "bbox" not in annotation or not keypoints:
        return False
    points = np.reshape(keypoints, (-1, 3))
    # Entries' coordinates are 0.5 more than pixel indices.
    is_inside = bool((points[:, :2] > 0.5).any())
    return is_inside and annotation.get("num_keypoints", (points[:, 2] > 0).sum()) > 0
