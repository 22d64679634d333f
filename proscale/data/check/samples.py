"""Reads what a registered data set consists of, whatever is wrong with it.

Loading for training stops at the first fault; here faults are collected. Annotation files of COCO's
formats and folders of label images are read themselves, anything else through Detectron2's catalog.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from proscale.data.check.faults import Fault, first_few
from proscale.data.check.truths import (
    Classes,
    InstanceTruth,
    PanopticTruth,
    SemanticTruth,
    Size,
    Truth,
)
from proscale.data.datasets.semantic_folders import IMAGE_SUFFIXES, mask_files, pair_files
from proscale.data.formats.coco_format import (
    IMAGES,
    INSTANCE_ANNOTATIONS,
    INSTANCE_CATEGORIES,
    PANOPTIC_ANNOTATIONS,
    SEGMENTS,
)
from proscale.data.formats.data_folder import DataFolder
from proscale.data.formats.image_file import check_size
from proscale.data.formats.json_file import Keys, check_records, read_records
from proscale.errors import DataError

# What Detectron2's entries have; panoptic ones may have labels besides.
_TASKS_BY_KEY = {
    "segments_info": "panoptic",
    "annotations": "instance",
    "sem_seg_file_name": "semantic",
}


@dataclass(frozen=True)
class Sample:
    """An image and its annotation.

    Attributes:
        image: its file.
        image_id: of the annotation file; None where images have none.
        size: (height, width) that the annotation file states, if it does.
        truth: what is to be checked.
    """

    image: str
    image_id: Any
    size: Size | None
    truth: Truth


@dataclass
class Contents:
    """A data set.

    Attributes:
        name: as registered.
        task: ``panoptic``, ``instance`` or ``semantic``.
        classes: its classes.
        samples: its images.
        faults: what is wrong with the files that list them.
    """

    name: str
    task: str
    classes: Classes
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def read_contents(name: str) -> Contents:
    """Read a registered data set.

    Raises:
        ValueError: it has no annotations of a kind that can be checked.
    """
    metadata = MetadataCatalog.get(name)
    evaluator = metadata.get("evaluator_type", "")
    is_cityscapes = evaluator.startswith("cityscapes")
    if metadata.get("panoptic_json") and not is_cityscapes:
        return _from_json(name, "panoptic", metadata.panoptic_json, _panoptic_samples)
    if evaluator in ("coco", "lvis"):
        return _from_json(name, "instance", metadata.json_file, _instance_samples)
    if evaluator.endswith("sem_seg") and metadata.get("mask_suffix"):
        return _from_folders(name)
    return _from_catalog(name)


class _AnnotationFile:
    """A COCO annotation file, joined by image; collects what does not fit together."""

    def __init__(self, path: str, annotation_keys: Keys, contents: Contents):
        self.path, self._contents = path, contents
        self.content = read_records(
            path,
            {
                "images": IMAGES,
                "annotations": annotation_keys,
                "categories": INSTANCE_CATEGORIES,
            },
        )
        for place, image in enumerate(self.content["images"]):
            check_size(image["height"], image["width"], f"{path}: images[{place}]")
        self._find_repeated("image", (image["id"] for image in self.content["images"]))
        self._find_repeated("image file", (i["file_name"] for i in self.content["images"]))
        self.images = {image["id"]: image for image in self.content["images"]}
        self.annotations: dict[Any, list[dict[str, Any]]] = {}
        for annotation in self.content["annotations"]:
            image_id = annotation["image_id"]
            if image_id in self.images:
                self.annotations.setdefault(image_id, []).append(annotation)
            else:
                label = f"annotation {annotation['id']} " if "id" in annotation else "annotation "
                self.found("annotation-without-image", f"{label}of image {image_id}")

    def found(self, kind: str, detail: str, segment: int | None = None) -> None:
        self._contents.faults.append(Fault(kind, self.path, detail, segment))

    def file_in(self, folder: DataFolder, name: str, what: str) -> str | None:
        """The path of a file that the annotation file names; None if that leaves its folder."""
        try:
            return folder.file(name, f"file_name of {what}")
        except DataError as error:
            self.found("path-outside", str(error))
            return None

    def find_not_annotated(self) -> None:
        missing = [id_ for id_ in self.images if id_ not in self.annotations]
        if missing:
            self.found("image-not-annotated", f"{len(missing)}: image ids {first_few(missing)}")

    def _find_repeated(self, what: str, keys: Iterable[Any]) -> None:
        for key, times in Counter(keys).items():
            if times > 1:
                self.found("image-repeated", f"{what} {key}, {times} times")


_Reader = Callable[[_AnnotationFile, Mapping[str, Any], Contents], None]

_ANNOTATION_KEYS = {"panoptic": PANOPTIC_ANNOTATIONS, "instance": INSTANCE_ANNOTATIONS}


def _from_json(name: str, task: str, path: str, read: _Reader) -> Contents:
    contents = Contents(name, task, Classes((), {}))
    try:
        metadata = MetadataCatalog.get(name).as_dict()
        read(_AnnotationFile(path, _ANNOTATION_KEYS[task], contents), metadata, contents)
    except FileNotFoundError as error:
        contents.faults.append(Fault("annotation-file", path, f"there is no {error.filename}"))
    except DataError as error:
        detail = str(error).removeprefix(f"{path}: ")
        contents.faults.append(Fault("annotation-file", path, detail))
    return contents


def _json_classes(categories: list[dict[str, Any]], known: Mapping[int, int]) -> Classes:
    """Those of an annotation file; those that the metadata do not know are unknown."""
    kept = [category for category in categories if category["id"] in known]
    return Classes([c["name"] for c in kept], {c["id"]: i for i, c in enumerate(kept)})


def _panoptic_samples(
    file: _AnnotationFile, metadata: Mapping[str, Any], contents: Contents
) -> None:
    known = {
        **metadata["thing_dataset_id_to_contiguous_id"],
        **metadata["stuff_dataset_id_to_contiguous_id"],
    }
    contents.classes = _json_classes(file.content["categories"], known)
    images, masks = DataFolder(metadata["image_root"]), DataFolder(metadata["panoptic_root"])
    for image_id in metadata.get("image_ids", file.annotations):
        annotations = file.annotations.get(image_id, [])
        if not annotations:
            file.found("annotation-file", f"no annotation for image {image_id}")
            continue
        if len(annotations) > 1:
            file.found("image-repeated", f"{len(annotations)} annotations of image {image_id}")
        annotation = annotations[-1]
        segments = annotation["segments_info"]
        check_records(segments, SEGMENTS, f"{file.path}: segments_info of image {image_id}")
        mask = file.file_in(masks, annotation["file_name"], f"the annotation of image {image_id}")
        if mask is not None:
            kept = ("id", "category_id", "iscrowd", "area", "bbox")
            truth = PanopticTruth(mask, [{key: s.get(key) for key in kept} for s in segments])
            _add_sample(file, images, image_id, truth, contents)
    if "image_ids" not in metadata:
        file.find_not_annotated()
        _find_unused(
            "image-not-annotated",
            Path(metadata["image_root"]),
            IMAGE_SUFFIXES,
            {image["file_name"] for image in file.content["images"]},
            contents,
        )
        used = {annotation["file_name"] for annotation in file.content["annotations"]}
        _find_unused("mask-unused", Path(metadata["panoptic_root"]), (".png",), used, contents)


def _instance_samples(
    file: _AnnotationFile, metadata: Mapping[str, Any], contents: Contents
) -> None:
    known = metadata.get("thing_dataset_id_to_contiguous_id")
    categories = file.content["categories"]
    # Detectron2 learns them from the file when it loads the data.
    known = known or {category["id"]: index for index, category in enumerate(categories)}
    contents.classes = _json_classes(categories, known)
    ids = Counter(annotation["id"] for annotation in file.content["annotations"])
    for id_, times in ids.items():
        if times > 1:
            file.found("segment-repeated", f"annotation {id_}, {times} times", id_)
    folder = DataFolder(metadata["image_root"])
    for image_id, image in file.images.items():
        truth = InstanceTruth(
            metadata["json_file"],
            file.annotations.get(image_id, []),
            (image["height"], image["width"]),
        )
        _add_sample(file, folder, image_id, truth, contents)


def _add_sample(
    file: _AnnotationFile, folder: DataFolder, image_id: Any, truth: Truth, contents: Contents
) -> None:
    image = file.images[image_id]
    path = file.file_in(folder, image["file_name"], f"image {image_id}")
    if path is not None:
        size = image["height"], image["width"]
        contents.samples.append(Sample(path, image_id, size, truth))


def _from_folders(name: str) -> Contents:
    metadata = MetadataCatalog.get(name).as_dict()
    contents = Contents(name, "semantic", _label_classes(metadata))
    pairs = pair_files(metadata)
    contents.samples = [Sample(str(i), None, None, SemanticTruth(str(m))) for i, m in pairs]
    if not pairs:
        contents.faults.append(Fault("image-missing", metadata["image_root"], "no images in it"))
    used = {mask for _, mask in pairs}
    unused = [mask for mask in mask_files(metadata) if mask not in used]
    if unused:
        detail = f"{len(unused)}: {first_few(mask.name for mask in unused)}"
        contents.faults.append(Fault("mask-unused", metadata["sem_seg_root"], detail))
    return contents


def _from_catalog(name: str) -> Contents:
    metadata = MetadataCatalog.get(name).as_dict()
    try:
        entries = DatasetCatalog.get(name)
    except (OSError, ValueError, KeyError, AssertionError) as error:
        fault = Fault("annotation-file", name, str(error))
        return Contents(name, "unknown", Classes((), {}), faults=[fault])
    if not entries:
        fault = Fault("image-missing", name, "the data set has no images")
        return Contents(name, "unknown", Classes((), {}), faults=[fault])
    task = next((task for key, task in _TASKS_BY_KEY.items() if key in entries[0]), None)
    if task is None:
        raise ValueError(
            f"data set {name} has entries with {', '.join(entries[0])}: expected those with "
            f"{', '.join(_TASKS_BY_KEY)}"
        )
    if task == "semantic":
        classes = _label_classes(metadata)
    else:
        # Entries have contiguous ids already.
        names = metadata.get("thing_classes") or metadata["stuff_classes"]
        classes = Classes(names, {index: index for index in range(len(names))})
    samples = [
        Sample(
            entry["file_name"],
            entry.get("image_id"),
            (entry["height"], entry["width"]) if "height" in entry else None,
            _entry_truth(entry, task),
        )
        for entry in entries
    ]
    return Contents(name, task, classes, samples)


def _entry_truth(entry: Mapping[str, Any], task: str) -> Truth:
    if task == "panoptic":
        return PanopticTruth(entry["pan_seg_file_name"], entry["segments_info"])
    if task == "semantic":
        return SemanticTruth(entry["sem_seg_file_name"])
    annotations = [{"id": index, **a} for index, a in enumerate(entry["annotations"])]
    return InstanceTruth(entry["file_name"], annotations, (entry["height"], entry["width"]))


def _label_classes(metadata: Mapping[str, Any]) -> Classes:
    names = metadata["stuff_classes"]
    return Classes(names, {i: i for i in range(len(names))}, metadata["ignore_label"])


def _find_unused(
    kind: str, folder: Path, suffixes: tuple[str, ...], used: set[str], contents: Contents
) -> None:
    unused = sorted(
        file.name
        for file in folder.glob("*")
        if file.suffix.lower() in suffixes and file.name not in used
    )
    if unused:
        detail = f"{len(unused)} files that no annotation names: {first_few(unused)}"
        contents.faults.append(Fault(kind, str(folder), detail))
