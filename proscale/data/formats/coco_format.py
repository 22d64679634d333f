"""COCO's annotation files, checked so that no later reader trips over them, and their entries.

Detectron2's loader learns categories when the data are loaded, and leaves annotations without an
image and broken polygons out; here the classes are known at once, and errors name the entry. A
file that is not of the format raises a DataError; parts that do not fit together are problems, see
:mod:`proscale.data.formats.problems`. COCO's own description: https://cocodataset.org/#format-data.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from detectron2.structures import BoxMode

from proscale.data.formats.image_file import MAX_ID, check_size
from proscale.data.formats.json_file import (
    BOX,
    ID,
    INTEGER,
    LIST,
    NUMBER,
    NUMBERS,
    TEXT,
    Keys,
    Kind,
    check_lists,
    check_records,
    read_json,
)
from proscale.data.formats.problems import Problem, Reporter, first_few, raise_first
from proscale.errors import DataError, shown
from proscale.utils.untrusted import AnyPath, inside, is_name

_NAME = Kind("a text without control characters", is_name)
# Some programs write numbers with a decimal point.
_FLAG = Kind("0 or 1", lambda v: isinstance(v, (int, float)) and v in (0, 1))
# Id 0 is void.
_SEGMENT_ID = Kind(f"an integer of 1 to {MAX_ID}", lambda v: type(v) is int and 1 <= v <= MAX_ID)
_CROWD: Keys = {"iscrowd": replace(_FLAG, is_needed=False)}

IMAGES: Keys = {"id": ID, "file_name": TEXT, "height": INTEGER, "width": INTEGER}
PANOPTIC_ANNOTATIONS: Keys = {"image_id": ID, "file_name": TEXT, "segments_info": LIST}
SEGMENTS: Keys = {"id": _SEGMENT_ID, "category_id": INTEGER, **_CROWD}
INSTANCE_ANNOTATIONS: Keys = {"id": ID, "image_id": ID, "category_id": INTEGER, **_CROWD}
INSTANCE_CATEGORIES: Keys = {"id": INTEGER, "name": _NAME}
PANOPTIC_CATEGORIES: Keys = {**INSTANCE_CATEGORIES, "isthing": _FLAG}
KEYPOINT_ANNOTATIONS: Keys = {
    **INSTANCE_ANNOTATIONS,
    "bbox": replace(BOX, is_needed=False),
    "keypoints": replace(NUMBERS, is_needed=False),
    "num_keypoints": replace(INTEGER, is_needed=False),
    "area": replace(NUMBER, is_needed=False),
}
_LINK = Kind("[i, j]", lambda v: isinstance(v, list) and list(map(type, v)) == [int, int])

Entries = list[dict[str, Any]]


def read_categories(path: AnyPath, keys: Keys) -> list[dict[str, Any]]:
    """The ``categories`` of an annotation file, of which there is one or more, each once."""
    content = read_json(path)
    _check_kind(content, path, keys)
    categories = check_categories(content, path, keys)
    if not categories:
        raise DataError(f"{path}: categories is empty: expected one or more")
    return categories


def _check_kind(content: Mapping[str, Any], path: AnyPath, keys: Keys) -> None:
    """Raise a DataError that names the right task if a file is of COCO's other format."""
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if not isinstance(first, dict):
        return
    has_segments, is_panoptic = "segments_info" in first, "isthing" in keys
    if is_panoptic and not has_segments and "segmentation" in first:
        raise DataError(
            f"{path}: its annotations are instances: expected COCO's panoptic format, or "
            "TASK: instance in DATASETS.OWN"
        )
    if has_segments and not is_panoptic:
        raise DataError(
            f"{path}: its annotations are panoptic: expected COCO's instance format, or "
            "TASK: panoptic in DATASETS.OWN"
        )


def check_categories(content: Mapping[str, Any], path: AnyPath, keys: Keys) -> list[dict[str, Any]]:
    """The ``categories`` of a file; a DataError if an id or a name is there twice."""
    check_lists(content, {"categories": keys}, path)
    # Results are listed by name.
    for key in ("id", "name"):
        values = (category[key] for category in content["categories"])
        _check_unique(values, path, "categories", key, raise_first)
    return content["categories"]


def check_skeleton(
    content: Mapping[str, Any], path: AnyPath
) -> tuple[dict[str, Any], list[str], list[tuple[int, int]]]:
    """The category of a keypoint file, the names of its K keypoints, and links between them.

    Links are pairs of places 0 to K - 1; the file, as COCO's, counts from 1.

    Raises:
        DataError: there is not exactly one category with ``keypoints``, or its names or its
            ``skeleton`` are not usable.
    """
    categories = check_categories(content, path, INSTANCE_CATEGORIES)
    categories = [category for category in categories if "keypoints" in category]
    if len(categories) != 1:
        raise DataError(f"{path}: {len(categories)} of its categories have keypoints: expected one")
    (category,) = categories
    where = f"{path}: category {category['id']}"
    names, skeleton = category["keypoints"], category.get("skeleton", [])
    if not isinstance(names, list) or not names or not all(map(is_name, names)):
        raise DataError(f"{where}.keypoints is {shown(names)}: expected a list of names")
    _check_unique(names, path, f"category {category['id']}.keypoints", "name", raise_first)
    places = range(1, len(names) + 1)
    are_links = isinstance(skeleton, list) and all(map(_LINK.accepts, skeleton))
    if not are_links or not all(place in places for link in skeleton for place in link):
        expected = f"expected a list of [i, j], numbers of keypoints from 1 to {len(names)}"
        raise DataError(f"{where}.skeleton is {shown(skeleton)}: {expected}")
    return category, names, [(a - 1, b - 1) for a, b in skeleton]


def check_panoptic_annotations(
    content: Mapping[str, Any], path: AnyPath, report: Reporter = raise_first
) -> None:
    """Check the ``annotations`` of a panoptic file, for its format and repetitions."""
    check_lists(content, {"annotations": PANOPTIC_ANNOTATIONS}, path)
    annotations = content["annotations"]
    _check_unique((a["image_id"] for a in annotations), path, "annotations", "image_id", report)
    for place, annotation in enumerate(annotations):
        name = f"annotations[{place}].segments_info"
        segments = annotation["segments_info"]
        check_records(segments, SEGMENTS, f"{path}: {name}")
        ids = (segment["id"] for segment in segments)
        _check_unique(ids, path, name, "id", report, "segment-repeated")


def check_instances(
    content: Mapping[str, Any],
    path: AnyPath,
    report: Reporter = raise_first,
    *,
    images: Keys = IMAGES,
    annotations: Keys = INSTANCE_ANNOTATIONS,
) -> None:
    """Check ``images`` and ``annotations`` of an instance file, which need these keys."""
    check_lists(content, {"annotations": annotations}, path)
    ids = (annotation["id"] for annotation in content["annotations"])
    _check_unique(ids, path, "annotations", "id", report, "segment-repeated")
    _check_images(content, path, images, report)


def load_coco_panoptic(metadata: Mapping[str, Any], report: Reporter = raise_first) -> Entries:
    """The entries of a data set, in Detectron2's format for panoptic data.

    Returns:
        for every image, ordered by its id or as in ``image_ids``: ``file_name``, ``height``,
        ``width``, ``image_id``, ``pan_seg_file_name``, and ``segments_info`` as in the annotation
        file, but with contiguous ``category_id`` (None if it is unknown), and with ``isthing``.
    """
    path = metadata["panoptic_json"]
    content = read_json(path)
    check_panoptic_annotations(content, path, report)
    _check_images(content, path, IMAGES, report)
    things = metadata["thing_dataset_id_to_contiguous_id"]
    # Category ids have gaps; models count classes from 0.
    known = things | metadata["stuff_dataset_id_to_contiguous_id"]
    # The file lists images and annotations in different orders; image_id joins them.
    images = _images_by_id(content, path, report)
    annotations = {a["image_id"]: a for a in content["annotations"] if a["image_id"] in images}
    wanted = metadata.get("image_ids", in_order(images))
    missing = [image_id for image_id in wanted if image_id not in annotations]
    if missing:
        # An image that is asked for by name must be there, or any; others may be left without.
        is_error = "image_ids" in metadata or len(missing) == len(wanted)
        kind = "annotation-file" if is_error else "image-not-annotated"
        count = f"{len(missing)} of {len(wanted)} images"
        report(Problem(kind, path, f"{count} have no annotation, ids {first_few(missing)}"))
    entries = []
    for image_id in (image_id for image_id in wanted if image_id in annotations):
        image, annotation = images[image_id], annotations[image_id]
        segments = []
        for segment in annotation["segments_info"]:
            where = f"segment {segment['id']} of image {image_id}"
            contiguous = _contiguous_id(segment, known, path, where, report)
            isthing = segment["category_id"] in things
            segments.append({**segment, "category_id": contiguous, "isthing": isthing})
        # Names come from the file: none may lead out of its folder.
        file = _file(metadata["image_root"], image, path, f"image {image_id}", report)
        where = f"the annotation of image {image_id}"
        png = _file(metadata["panoptic_root"], annotation, path, where, report)
        if file and png:
            entry = {"file_name": file, "pan_seg_file_name": png, "segments_info": segments}
            size = {"height": image["height"], "width": image["width"]}
            entries.append(entry | size | {"image_id": image_id})
    return entries


def load_coco_instances(metadata: Mapping[str, Any], report: Reporter = raise_first) -> Entries:
    """The entries of a data set, in Detectron2's format for instance segmentation.

    Returns:
        for every image, ordered by its id or as in ``image_ids``: ``file_name``, ``height``,
        ``width``, ``image_id``, and ``annotations`` with ``id``, the contiguous ``category_id``
        (None if it is unknown), ``iscrowd``, ``segmentation`` as in the file and, where the file
        has it, ``area``, and ``bbox`` with ``bbox_mode``.
    """
    content = read_json(metadata["json_file"])
    check_instances(content, metadata["json_file"], report)
    return _load_objects(content, metadata, report)


def load_coco_keypoints(metadata: Mapping[str, Any], report: Reporter = raise_first) -> Entries:
    """The entries of a data set, in Detectron2's format for keypoints.

    Returns:
        what :func:`load_coco_instances` does, without ``segmentation``. Where the file has them,
        annotations have ``keypoints``, 3 K numbers (x, y, visibility), and ``num_keypoints``. As in
        all of Detectron2 x and y are 0.5 more than in the file, which has pixel indices.
    """
    path, num_keypoints = metadata["json_file"], len(metadata["keypoint_names"])
    content = read_json(path)
    check_instances(content, path, report, annotations=KEYPOINT_ANNOTATIONS)
    for annotation in content["annotations"]:
        keypoints = annotation.get("keypoints", [])
        # Some files give persons without labels an empty list.
        if not keypoints:
            continue
        id_ = annotation["id"]
        if len(keypoints) != 3 * num_keypoints or not set(keypoints[2::3]) <= {0, 1, 2}:
            detail = f"annotation {id_} has {len(keypoints)} numbers as keypoints: expected "
            detail += f"(x, y, visibility 0, 1 or 2) of {num_keypoints} keypoints"
            report(Problem("keypoints-unreadable", path, detail, id_))
            annotation["keypoints"] = []
    return _load_objects(content, metadata, report)


def _load_objects(
    content: Mapping[str, Any], metadata: Mapping[str, Any], report: Reporter
) -> Entries:
    """Join the images and annotations of a checked file."""
    path, known = metadata["json_file"], metadata["thing_dataset_id_to_contiguous_id"]
    # Instances are listed one by one; an image without any is an entry, too.
    by_image = defaultdict(list)
    for annotation in content["annotations"]:
        where = f"annotation {annotation['id']} of image {annotation['image_id']}"
        entry = {
            "id": annotation["id"],
            "category_id": _contiguous_id(annotation, known, path, where, report),
            "iscrowd": annotation.get("iscrowd", 0),
        }
        if "bbox" in annotation:
            entry |= {"bbox": annotation["bbox"], "bbox_mode": BoxMode.XYWH_ABS}
        entry |= {key: annotation[key] for key in ("area", "num_keypoints") if key in annotation}
        if "keypoint_names" not in metadata:
            # Read by the mapper, which reports segmentations that cannot be drawn.
            entry["segmentation"] = annotation.get("segmentation")
        elif keypoints := annotation.get("keypoints"):
            # From pixel indices to Detectron2's coordinates, of which pixel 0 has 0 to 1.
            entry["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(keypoints)]
        by_image[annotation["image_id"]].append(entry)
    images = _images_by_id(content, path, report)
    entries = []
    for image_id in metadata.get("image_ids", in_order(images)):
        if image_id not in images:
            report(Problem("annotation-file", path, f"there is no image {image_id}"))
            continue
        image = images[image_id]
        file = _file(metadata["image_root"], image, path, f"image {image_id}", report)
        if file:
            entry = {"file_name": file, "annotations": by_image[image_id], "image_id": image_id}
            entries.append(entry | {"height": image["height"], "width": image["width"]})
    return entries


def _images_by_id(
    content: Mapping[str, Any], path: str, report: Reporter
) -> dict[int | str, dict[str, Any]]:
    if not content["images"]:
        report(Problem("annotation-file", path, "images is empty: expected one or more"))
    return {image["id"]: image for image in content["images"]}


def in_order(ids: Iterable[int | str]) -> list[int | str]:
    """Numbers, then texts: a file may have both."""
    return sorted(ids, key=lambda id_: (isinstance(id_, str), id_))


def _contiguous_id(
    segment: Mapping[str, Any], known: Mapping[int, int], path: str, where: str, report: Reporter
) -> int | None:
    category = segment["category_id"]
    if category not in known:
        detail = f"{where} has category_id {category}: expected {first_few(sorted(known))}"
        report(Problem("unknown-category", path, detail, segment["id"]))
    return known.get(category)


def _file(
    root: str, record: Mapping[str, Any], path: str, what: str, report: Reporter
) -> str | None:
    try:
        return inside(root, record["file_name"], f"file_name of {what}")
    except DataError as error:
        report(Problem("path-outside", path, str(error)))
        return None


def _check_images(content: Mapping[str, Any], path: AnyPath, keys: Keys, report: Reporter) -> None:
    check_lists(content, {"images": keys}, path)
    images = content["images"]
    # A mask of the stated size will be allocated: absurd sizes are refused here.
    for place, image in enumerate(images):
        check_size(image["height"], image["width"], f"{path}: images[{place}]")
    known = _check_unique((image["id"] for image in images), path, "images", "id", report)
    for place, annotation in enumerate(content["annotations"]):
        if annotation["image_id"] not in known:
            where = f"annotations[{place}] is for image {annotation['image_id']}"
            detail = f"{where}, which is not among its images"
            report(Problem("annotation-without-image", str(path), detail))


def _check_unique(
    values: Iterable[int | str],
    path: AnyPath,
    name: str,
    key: str,
    report: Reporter,
    kind: str = "image-repeated",
) -> set[int | str]:
    """Report repeated values; returns all of them."""
    seen: set[int | str] = set()
    for place, value in enumerate(values):
        if value in seen:
            detail = f"{name}[{place}]: {key} {value!r} is there twice: expected once"
            segment = value if kind == "segment-repeated" else None
            report(Problem(kind, str(path), detail, segment))
        seen.add(value)
    return seen
