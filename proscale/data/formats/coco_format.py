"""What the files of COCO's formats must have, so that nothing that reads them trips over it.

COCO's own description is at https://cocodataset.org/#format-data.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from proscale.data.formats.image_file import check_size
from proscale.data.formats.json_file import (
    Keys,
    check_lists,
    check_records,
    read_json,
    read_records,
)
from proscale.errors import DataError

_ID = (int, str)

IMAGES: Keys = {"id": _ID, "file_name": (str,), "height": (int,), "width": (int,)}
PANOPTIC_ANNOTATIONS: Keys = {"image_id": _ID, "file_name": (str,), "segments_info": (list,)}
SEGMENTS: Keys = {"id": (int,), "category_id": (int,)}
INSTANCE_ANNOTATIONS: Keys = {"id": _ID, "image_id": _ID, "category_id": (int,)}
INSTANCE_CATEGORIES: Keys = {"id": (int,), "name": (str,)}
PANOPTIC_CATEGORIES: Keys = {**INSTANCE_CATEGORIES, "isthing": (int, bool)}


def read_panoptic(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A panoptic annotation file: ``images``, and ``annotations`` with their ``segments_info``.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is not of the format, or has an image or its annotation twice, or an
            annotation without an image; the message names the entry.
    """
    content = read_json(path)
    check_panoptic_annotations(content, path)
    _check_annotated_images(content, path, IMAGES)
    return content


def check_panoptic_annotations(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Make sure that the ``annotations`` in the ``content`` of ``path`` are panoptic ones.

    Raises:
        DataError: they are not, or there are two of an image; the message names the entry.
    """
    check_lists(content, {"annotations": PANOPTIC_ANNOTATIONS}, path)
    annotated = [annotation["image_id"] for annotation in content["annotations"]]
    _check_unique(annotated, f"{path}: annotations", "image_id")
    for place, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotations[{place}].segments_info"
        check_records(annotation["segments_info"], SEGMENTS, where)


def check_instances(
    content: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    images: Keys = IMAGES,
    annotations: Keys = INSTANCE_ANNOTATIONS,
) -> None:
    """Make sure that the ``content`` of ``path`` is that of an instance annotation file.

    Args:
        content: see ``read_json``.
        path: for messages.
        images, annotations: what their elements must have.

    Raises:
        DataError: it is not of the format, or has an image twice, or an annotation without an
            image; the message names the entry.
    """
    check_lists(content, {"annotations": annotations}, path)
    _check_annotated_images(content, path, images)


def _check_annotated_images(
    content: Mapping[str, Any], path: str | os.PathLike[str], keys: Keys
) -> None:
    check_lists(content, {"images": keys}, path)
    for place, image in enumerate(content["images"]):
        check_size(image["height"], image["width"], f"{path}: images[{place}]")
    image_ids = [image["id"] for image in content["images"]]
    _check_unique(image_ids, f"{path}: images", "id")
    known = set(image_ids)
    for place, annotation in enumerate(content["annotations"]):
        if annotation["image_id"] not in known:
            raise DataError(
                f"{path}: annotations[{place}] is for image {annotation['image_id']}, which is not "
                "among its images"
            )


def read_categories(path: str | os.PathLike[str], keys: Keys) -> list[dict[str, Any]]:
    """The ``categories`` of an annotation file, of which there is one or more, each id once.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: they are not there or not of the format.
    """
    categories = read_records(path, {"categories": keys})["categories"]
    if not categories:
        raise DataError(f"{path}: categories is empty: expected one or more")
    _check_unique([category["id"] for category in categories], f"{path}: categories", "id")
    return categories


def _check_unique(values: Iterable[int | str], where: str, key: str) -> None:
    seen: set[int | str] = set()
    for place, value in enumerate(values):
        if value in seen:
            raise DataError(f"{where}[{place}]: {key} {value!r} is there twice: expected once")
        seen.add(value)
