"""Data sets in COCO's instance format, with the categories of their annotation file.

Detectron2's loader learns the categories when the data are loaded, and leaves annotations without
an image and broken polygons out; here the classes are known at once, and what is wrong is named.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from proscale.data.formats.coco_format import check_instances
from proscale.data.formats.data_folder import DataFolder
from proscale.data.formats.json_file import read_json
from proscale.errors import DataError


def instance_metadata(
    categories: Sequence[Mapping[str, Any]], *, image_root: str | Path, json_file: str | Path
) -> dict[str, Any]:
    """Detectron2's metadata of an instance data set: contiguous class ids in the order of COCO's.

    Args:
        categories: COCO's, with ``id``, ``name`` and, if colours are given, ``color``.
        image_root: folder of the images.
        json_file: annotations in COCO's instance format.
    """
    ordered = sorted(categories, key=lambda category: category["id"])
    metadata: dict[str, Any] = {
        "image_root": str(image_root),
        "json_file": str(json_file),
        "evaluator_type": "coco",
        "thing_classes": [category["name"] for category in ordered],
        "thing_dataset_id_to_contiguous_id": {
            category["id"]: index for index, category in enumerate(ordered)
        },
    }
    if all("color" in category for category in ordered):
        metadata["thing_colors"] = [list(category["color"]) for category in ordered]
    return metadata


def load_coco_instances(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of a data set, in Detectron2's format for instance segmentation.

    Args:
        metadata: as from ``instance_metadata``.

    Returns:
        for every image, ordered by its id: ``file_name``, ``height``, ``width``, ``image_id``, and
        ``annotations`` with the contiguous ``category_id``, ``iscrowd``, ``segmentation`` as in the
        file and, where the file has it, ``bbox`` with ``bbox_mode``.

    Raises:
        FileNotFoundError: there is no ``json_file``.
        DataError: it is not of the format; an annotation has no image or an unknown category; or a
            file name leads out of its folder.
    """
    path = metadata["json_file"]
    content = read_json(path)
    check_instances(content, path)
    images = {image["id"]: image for image in content["images"]}
    folder = DataFolder(metadata["image_root"])
    by_image = defaultdict(list)
    for annotation in content["annotations"]:
        where = f"{path}: annotation {annotation['id']} of image {annotation['image_id']}"
        by_image[annotation["image_id"]].append(
            _entry(annotation, metadata["thing_dataset_id_to_contiguous_id"], where)
        )
    return [
        {
            "file_name": folder.file(image["file_name"], f"{path}: file_name of image {image_id}"),
            "height": image["height"],
            "width": image["width"],
            "image_id": image_id,
            "annotations": by_image[image_id],
        }
        for image_id, image in sorted(images.items())
    ]


def _entry(annotation: Mapping[str, Any], known: Mapping[int, int], where: str) -> dict[str, Any]:
    if annotation["category_id"] not in known:
        raise DataError(
            f"{where} has category_id {annotation['category_id']}; known are {sorted(known)}"
        )
    entry = {
        "category_id": known[annotation["category_id"]],
        "iscrowd": annotation.get("iscrowd", 0),
        # Whether it can be drawn is told by the mapper, which does.
        "segmentation": annotation.get("segmentation"),
    }
    if "bbox" in annotation:
        entry |= {"bbox": annotation["bbox"], "bbox_mode": BoxMode.XYWH_ABS}
    return entry
