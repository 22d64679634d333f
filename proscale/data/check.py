"""Checks data sets before hours of training: each image and its annotation, then shared images.

Training stops at the first error; here problems are collected. Annotation files of COCO's formats
and folders of label images are read leniently, anything else through Detectron2's catalog.
"""

import hashlib
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate
from tqdm import tqdm

from proscale.data.datasets.registration import instance_metadata
from proscale.data.formats.coco_format import (
    INSTANCE_CATEGORIES,
    Entries,
    load_coco_instances,
    load_coco_keypoints,
    load_coco_panoptic,
    read_categories,
)
from proscale.data.formats.image_file import (
    check_stated_size,
    exif_orientation,
    open_image,
    to_array,
)
from proscale.data.formats.json_file import NUMBER
from proscale.data.formats.problems import ERRORS, WARNINGS, Problem, Reporter, first_few
from proscale.data.formats.semantic_folders import (
    BLACK_AND_WHITE,
    IMAGE_SUFFIXES,
    load_semantic_folders,
    mask_files,
)
from proscale.data.mappers.annotations import (
    BoxReader,
    Entry,
    InstanceReader,
    PanopticReader,
    SemanticReader,
    count_values,
)
from proscale.errors import ConfigError, DataError, MissingFileError, shown
from proscale.utils.types import Size

# Keys of Detectron2's entries by task; panoptic ones may have labels besides.
_TASKS_BY_KEY = {
    "segments_info": "panoptic",
    "annotations": "instance",
    "sem_seg_file_name": "semantic",
}
# The keys that annotations are in; others have a list of them.
_KEYS_BY_TASK = {"panoptic": PanopticReader.key, "semantic": SemanticReader.key}
_CHUNK = 16
# Fraction of pixels above which one class, or the ignored label, is warned of.
_NEARLY_ALL = 0.95
_ROWS, _COLUMNS = 20, 3
_ALIGN = ("left", "right", "right", "right")
# Names of what is counted, and of the last column.
_HEADERS = {
    "keypoints": ("keypoint", "images", "labels", "labels %"),
    "detection": ("class", "images", "boxes", "area %"),
}


@dataclass
class Findings:
    """Results of checking one image: ``segments`` and ``pixels`` count those of each class, and
    ``ignored`` the pixels of label images that have none.

    ``digest`` is of the pixels in RGB: the same for a picture, whatever its file's format.
    """

    problems: list[Problem] = field(default_factory=list)
    digest: str | None = None
    segments: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    ignored: int = 0

    def count(self, class_: int | None, area: int) -> None:
        """Count a segment; None is an unknown class."""
        if class_ is not None and area:
            self.segments[class_] += 1
            self.pixels[class_] += area


@dataclass
class DatasetReport:
    """Results for a data set; its ``task`` is ``unknown`` if it cannot be read.

    ``images``, ``segments`` and ``pixels`` count, by place, those with or of each class;
    ``ignored`` counts pixels of label images without one.
    ``digests`` has the files by their pixels.
    """

    name: str
    task: str = "unknown"
    class_names: Sequence[str] = ()
    num_images: int = 0
    problems: list[Problem] = field(default_factory=list)
    images: Counter[int] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    ignored: int = 0
    digests: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    image_ids: set = field(default_factory=set)


@dataclass
class Report:
    """Results for several data sets, and problems between them."""

    datasets: list[DatasetReport]
    between: list[Problem]

    @property
    def problems(self) -> list[Problem]:
        return [*(p for dataset in self.datasets for p in dataset.problems), *self.between]

    @property
    def has_errors(self) -> bool:
        return any(problem.is_error for problem in self.problems)


def check_datasets(names: Sequence[str], *, workers: int) -> Report:
    """Check registered data sets, and that no picture is in two of them, in ``workers`` processes.

    Raises:
        ConfigError: a data set has no annotations of a kind that can be checked.
    """
    datasets = [_check(name, workers) for name in names]
    # Pictures of a training set in its validation set make results worthless.
    pairs = combinations(datasets, 2)
    return Report(datasets, [problem for a, b in pairs for problem in _compare(a, b)])


def _check(name: str, workers: int) -> DatasetReport:
    report = DatasetReport(name)
    metadata: dict[str, Any] = {}
    entries: Entries = []
    try:
        metadata = MetadataCatalog.get(name).as_dict()
        report.task, entries = _read(metadata, report.problems)
    except DataError as error:
        file = metadata.get("panoptic_json") or metadata.get("json_file") or name
        detail = str(error).removeprefix(f"{file}: ")
        report.problems.append(Problem("annotation-file", file, detail))
    # Without entries there is nothing more to check.
    if report.task == "unknown":
        return report
    report.class_names = metadata.get("thing_classes") or metadata["stuff_classes"]
    if report.task == "keypoints":
        report.class_names = metadata["keypoint_names"]
    elif report.task == "semantic":
        report.class_names = metadata["stuff_classes"]
    report.num_images = len(entries)
    # Images are decoded in parallel; counts are added up here.
    key = _KEYS_BY_TASK.get(report.task, "annotations")
    check = partial(_check_sample, key, _annotation_check(report.task, metadata))
    results = _map(check, entries, workers)
    progress = tqdm(results, name, len(entries), unit="image", disable=None)
    for entry, findings in zip(entries, progress, strict=True):
        report.problems += findings.problems
        report.images.update(findings.segments.keys())
        report.segments.update(findings.segments)
        report.pixels.update(findings.pixels)
        report.ignored += findings.ignored
        if findings.digest is not None:
            report.digests[findings.digest].append(entry["file_name"])
        if entry.get("image_id") is not None:
            report.image_ids.add(entry["image_id"])
    # The same pixels twice within a data set, under whatever names.
    for files in report.digests.values():
        if len(files) > 1:
            detail = f"also {first_few(files[1:])}"
            report.problems.append(Problem("image-duplicate", files[0], detail))
    if report.task == "semantic":
        report.problems += _check_shares(report)
    # A class without a segment cannot be learned, or not be evaluated.
    absent = [n for i, n in enumerate(report.class_names) if not report.segments[i]]
    if absent and entries:
        detail = f"{len(absent)} of {len(report.class_names)} classes: {first_few(absent)}"
        report.problems.append(Problem("class-absent", name, detail))
    return report


def _check_shares(report: DatasetReport) -> Iterable[Problem]:
    """Label images of which nearly all is one class, or none, teach nothing."""
    labelled = report.pixels.total()
    for class_, pixels in report.pixels.items():
        if pixels > _NEARLY_ALL * labelled:
            share = f"{100 * pixels / labelled:.1f} % of labelled pixels"
            # As masks of 0 and 255 look, of which 255 is ignored.
            hint = f"; if {BLACK_AND_WHITE}" if pixels == labelled and report.ignored else ""
            detail = f"{report.class_names[class_]} has {share}{hint}"
            yield Problem("pixels-of-one-class", report.name, detail)
    if report.ignored > _NEARLY_ALL * (labelled + report.ignored):
        share = f"{100 * report.ignored / (labelled + report.ignored):.1f} %"
        detail = f"{share} of all pixels: expected IGNORE_LABEL to be rare"
        yield Problem("pixels-ignored", report.name, detail)


def _read(metadata: dict[str, Any], problems: list[Problem]) -> tuple[str, Entries]:
    """The task and the entries of a data set, read leniently."""
    report, name = problems.append, metadata["name"]
    evaluator = metadata.get("evaluator_type", "")
    # Cityscapes' panoptic file has names of images that do not exist; its loader mends them.
    if metadata.get("panoptic_json") and not evaluator.startswith("cityscapes"):
        entries = load_coco_panoptic(metadata, report)
        images = Counter(entry["file_name"] for entry in entries)
        _check_files_once(images, metadata["panoptic_json"], report)
        if "image_ids" not in metadata:
            pngs = {entry["pan_seg_file_name"] for entry in entries}
            folders = metadata["image_root"], metadata["panoptic_root"]
            problems += _unused("image-not-annotated", folders[0], IMAGE_SUFFIXES, images)
            problems += _unused("mask-unused", folders[1], (".png",), pngs)
        return "panoptic", entries
    if evaluator in ("coco", "lvis"):
        path = metadata["json_file"]
        if "thing_dataset_id_to_contiguous_id" not in metadata:
            # Detectron2 learns them from the file when it loads the data.
            categories = read_categories(path, INSTANCE_CATEGORIES)
            metadata |= instance_metadata(
                categories, image_root=metadata["image_root"], json_file=path
            )
        task = "instance" if metadata.get("has_masks", True) else "detection"
        if "keypoint_names" in metadata:
            task = "keypoints"
        load = load_coco_keypoints if task == "keypoints" else load_coco_instances
        entries = load(metadata, report)
        images = Counter(entry["file_name"] for entry in entries)
        _check_files_once(images, path, report)
        if task == "keypoints":
            without = [a["id"] for e in entries for a in e["annotations"] if "area" not in a]
            if without:
                detail = f"{len(without)} annotations, ids {first_few(without)}"
                report(Problem("area-missing", path, detail))
        return task, entries
    if evaluator.endswith("sem_seg") and metadata.get("mask_suffix"):
        entries = load_semantic_folders(metadata, report)
        used = {entry.get("sem_seg_file_name") for entry in entries}
        unused = [mask.name for mask in mask_files(metadata) if str(mask) not in used]
        if unused:
            detail = f"{len(unused)}: {first_few(unused)}"
            report(Problem("mask-unused", metadata["sem_seg_root"], detail))
        return "semantic", entries
    # Others' loaders stop at the first error.
    try:
        entries = DatasetCatalog.get(name)
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise DataError(str(error)) from error
    if not entries:
        report(Problem("image-missing", name, "the data set has no images"))
        return "unknown", []
    found = next((task for key, task in _TASKS_BY_KEY.items() if key in entries[0]), None)
    if found is None:
        there, expected = ", ".join(entries[0]), ", ".join(_TASKS_BY_KEY)
        raise ConfigError(f"data set {name} has entries with {there}: expected {expected}")
    return found, entries


def _unused(
    kind: str, folder: str, suffixes: tuple[str, ...], used: Collection[str]
) -> Iterable[Problem]:
    files = {file for file in Path(folder).glob("*") if file.suffix.lower() in suffixes}
    unused = sorted(file.name for file in files - {Path(file) for file in used})
    if unused:
        detail = "files that are in no pair of image and annotation"
        yield Problem(kind, folder, f"{len(unused)} {detail}: {first_few(unused)}")


def _map(function: partial, entries: Entries, workers: int) -> Iterator[Findings]:
    if workers == 1:
        yield from map(function, entries)
    else:
        with multiprocessing.Pool(workers) as pool:
            yield from pool.imap(function, entries, chunksize=_CHUNK)


def _compare(a: DatasetReport, b: DatasetReport) -> Iterable[Problem]:
    # The same pixels under any name spoil an evaluation; the same name or id need not.
    for digest in a.digests.keys() & b.digests.keys():
        files = a.digests[digest][0], b.digests[digest][0]
        yield Problem("leaked-image", files[0], f"the same picture is {files[1]} of {b.name}")
    names = [
        {Path(file).name for files in report.digests.values() for file in files}
        for report in (a, b)
    ]
    for kind, both in (
        ("name-in-both", names[0] & names[1]),
        ("id-in-both", a.image_ids & b.image_ids),
    ):
        if both:
            detail = f"{len(both)}: {first_few(sorted(both, key=str))}"
            yield Problem(kind, f"{a.name}, {b.name}", detail)


# Checks the annotation of an entry whose image has this size, None if that cannot be read.
AnnotationCheck = Callable[[Entry, Size | None, Findings], None]


def _annotation_check(task: str, metadata: Mapping[str, Any]) -> AnnotationCheck:
    """What is done with the annotation of every image; to be sent to other processes."""
    if task == "panoptic":
        return _check_panoptic
    if task == "semantic":
        num_classes, ignored = len(metadata["stuff_classes"]), metadata["ignore_label"]
        reader = SemanticReader(num_classes=num_classes, ignore_label=ignored)
        return partial(_check_semantic, reader)
    checks = {"detection": _check_boxes, "keypoints": _check_keypoints}
    return partial(checks.get(task, _check_instances), metadata.get("json_file", ""))


def _check_sample(key: str, check: AnnotationCheck, entry: Entry) -> Findings:
    findings = Findings()
    stated = (entry["height"], entry["width"]) if "height" in entry else None
    size = _check_image(entry["file_name"], stated, findings)
    # Without an annotation only the image is checked.
    if key in entry:
        # Errors in training are reported by the readers, implausible values here.
        check(entry, size, findings)
    return findings


def _check_files_once(images: Mapping[str, int], file: str, report: Reporter) -> None:
    for name, times in images.items():
        if times > 1:
            report(Problem("image-repeated", file, f"image file {name}, {times} times"))


def _check_image(path: str, stated: Size | None, findings: Findings) -> Size | None:
    """Decode an image as training does; returns its (height, width), or None if that fails."""

    def found(kind: str, detail: str) -> None:
        findings.problems.append(Problem(kind, path, detail))

    try:
        with open_image(path) as image:
            orientation, mode = exif_orientation(image), image.mode
            has_alpha = "A" in mode or "transparency" in image.info
            pixels = to_array(image, "RGB", path)
    except DataError as error:
        kind = "image-missing" if isinstance(error, MissingFileError) else "image-unreadable"
        found(kind, str(error).removeprefix(f"{path}: "))
        return None
    height, width = pixels.shape[:2]
    # The shape belongs to the digest: 2x8 and 4x4 pixels may have the same bytes.
    content = repr(pixels.shape).encode() + pixels.tobytes()
    findings.digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    if orientation != 1:
        read_as = f"read as {height}x{width} (height x width)"
        found("exif-rotation", f"EXIF orientation {orientation}, {read_as}")
    check_stated_size(path, (height, width), stated, findings.problems.append)
    # Readable, but read otherwise than it looks.
    if mode.startswith("I"):
        found("image-depth", f"mode {mode}")
    elif mode == "CMYK":
        found("image-cmyk", f"mode {mode}")
    elif mode in ("1", "L", "LA"):
        found("image-greyscale", f"mode {mode}")
    if has_alpha:
        found("image-alpha", f"mode {mode}")
    return height, width


def _check_panoptic(entry: Entry, size: Size | None, findings: Findings) -> None:
    report, png = findings.problems.append, entry["pan_seg_file_name"]
    segments = entry["segments_info"]
    ids = PanopticReader().read_ids(entry, size, report)
    areas = {} if ids is None else count_values(ids)
    for segment in segments:
        id_, stated = segment["id"], segment.get("area")
        where, area = f"segment {id_}", areas.get(id_, 0)
        # Boxes are those of the map, if it is the image's.
        map_size = size if ids is not None and ids.shape == size else None
        _check_values(segment, map_size, where, id_, png, report)
        if area and _is_number(stated) and stated > 0 and stated != area:
            report(Problem("area-differs", png, f"{where}: area {stated}, {area} pixels", id_))
        findings.count(segment["category_id"], area)
    _check_targets(segments, "segments", entry, report)


def _check_semantic(
    reader: SemanticReader, entry: Entry, size: Size | None, findings: Findings
) -> None:
    labels = reader.read_labels(entry, size, findings.problems.append)
    if labels is None:
        return
    areas = count_values(labels)
    # Unlabelled pixels are of no class.
    findings.ignored = areas.pop(reader.ignore_label, 0)
    for label, area in areas.items():
        findings.count(label if 0 <= label < reader.num_classes else None, area)
    if not areas:
        findings.problems.append(Problem("image-empty", entry["file_name"], "no pixel has a label"))


def _check_instances(file: str, entry: Entry, size: Size | None, findings: Findings) -> None:
    report, size = findings.problems.append, (entry["height"], entry["width"])
    file = file or entry["file_name"]
    for index, annotation in enumerate(entry["annotations"]):
        id_ = annotation.get("id", index)
        where = f"annotation {id_} of {entry['file_name']}"
        _check_values(annotation, size, where, id_, file, report)
    # Crowds are checked and counted, too.
    codes = InstanceReader().read_codes(entry, size, report, crowds=True)
    for id_, annotation, code in codes:
        area = int(pycocotools.mask.area(code))
        if not area:
            detail = f"annotation {id_} of {entry['file_name']}"
            report(Problem("segment-without-pixels", file, detail, id_))
        findings.count(annotation["category_id"], area)
    _check_targets(entry["annotations"], "instances", entry, report)


def _check_boxes(file: str, entry: Entry, size: Size | None, findings: Findings) -> None:
    for annotation, area in _boxes(file, entry, findings.problems.append):
        # Crowds are checked and counted, too.
        findings.count(annotation["category_id"], area)
    _check_targets(entry["annotations"], "objects", entry, findings.problems.append)


def _check_keypoints(file: str, entry: Entry, size: Size | None, findings: Findings) -> None:
    report, (height, width) = findings.problems.append, (entry["height"], entry["width"])
    for annotation, _ in _boxes(file, entry, report):
        id_ = annotation["id"]
        where = f"annotation {id_} of {entry['file_name']}"
        points = np.reshape(annotation.get("keypoints", []), (-1, 3))
        labelled = points[:, 2] > 0
        for keypoint in np.flatnonzero(labelled).tolist():
            findings.count(keypoint, 1)
        # Detectron2's coordinates: pixels are from 0 to the image's side.
        x, y = points[labelled, :2].T
        is_outside = (x < 0) | (x > width) | (y < 0) | (y > height)
        if is_outside.any():
            detail = f"{where}: {is_outside.sum()} keypoints, image (height, width)"
            report(Problem("keypoint-outside", file, f"{detail} {(height, width)}", id_))
        stated, found = annotation.get("num_keypoints"), int(labelled.sum())
        if stated is not None and stated != found:
            detail = f"{where}: num_keypoints {stated}, {found} labelled"
            report(Problem("keypoint-count-differs", file, detail, id_))
    _check_targets(entry["annotations"], "persons", entry, report)


def _boxes(file: str, entry: Entry, report: Reporter) -> Iterator[tuple[Entry, int]]:
    """Annotations whose box has a size, and its area; problems of all are reported."""
    size = entry["height"], entry["width"]
    for id_, annotation, (left, top, right, bottom) in BoxReader().read_boxes(entry, report):
        where = f"annotation {id_} of {entry['file_name']}"
        width, height = right - left, bottom - top
        if width <= 0 or height <= 0:
            detail = f"{where}: bbox {shown(annotation['bbox'])}"
            report(Problem("box-empty", file or entry["file_name"], detail, id_))
            continue
        _check_values(annotation, size, where, id_, file or entry["file_name"], report)
        # What is outside of the image is none of its pixels.
        inside = min(right, size[1]) - max(left, 0), min(bottom, size[0]) - max(top, 0)
        yield annotation, max(round(inside[0]), 0) * max(round(inside[1]), 0)


def _check_targets(
    segments: Sequence[Mapping[str, Any]], name: str, entry: Entry, report: Reporter
) -> None:
    if all(segment.get("iscrowd", 0) for segment in segments):
        detail = f"{len(segments)} {name}" + ", all of them crowds" * bool(segments)
        report(Problem("image-empty", entry["file_name"], detail))


def _check_values(
    segment: Mapping[str, Any], size: Size | None, where: str, id_: Any, file: str, report: Reporter
) -> None:
    """Look at the stated area, and at the box [x, y, width, height] in an image of that size."""
    area, box = segment.get("area"), segment.get("bbox")
    if area is not None and not (_is_number(area) and area > 0):
        report(Problem("area-not-positive", file, f"{where}: area {shown(area)}", id_))
    if box is None or size is None:
        return
    # Four numbers, inside the image, with a tolerance of a pixel for other ways to count.
    if isinstance(box, Sequence) and len(box) == 4 and all(map(_is_number, box)):
        (x, y, width, height), (bottom, right) = box, size
        if -1 <= x <= x + width <= right + 1 and -1 <= y <= y + height <= bottom + 1:
            return
    detail = f"{where}: bbox {shown(box)}, image (height, width) {size}"
    report(Problem("box-outside", file, detail, id_))


def _is_number(value: Any) -> bool:
    return NUMBER.accepts(value)


def histogram(dataset: DatasetReport) -> str:
    """How often each class occurs, and its fraction of all annotated pixels, of all boxes' area, or
    of all labelled keypoints."""
    # Many classes are set in several columns, read downwards.
    total = sum(dataset.pixels.values()) or 1
    cells = [
        (name, dataset.images[i], dataset.segments[i], f"{100 * dataset.pixels[i] / total:.2f}")
        for i, name in enumerate(dataset.class_names)
    ]
    columns = 1 if len(cells) <= _ROWS else _COLUMNS
    rows = -(-len(cells) // columns)
    lines = [[value for cell in cells[row::rows] for value in cell] for row in range(rows)]
    names = _HEADERS.get(dataset.task, ("class", "images", "segments", "pixels %"))
    headers = names * columns
    table = tabulate(lines, headers=headers, disable_numparse=True, colalign=_ALIGN * columns)
    if not dataset.ignored:
        return table
    share = 100 * dataset.ignored / (total + dataset.ignored)
    return f"{table}\n\nignored: {dataset.ignored} pixels, {share:.2f} % of all"


def summary(report: Report) -> str:
    """How often every kind of problem was found, and the first; then the verdict."""
    by_kind: dict[str, list[Problem]] = defaultdict(list)
    for problem in report.problems:
        by_kind[problem.kind].append(problem)
    # Errors before warnings, each in the order of the tables.
    rows = [
        (severity, kind, len(by_kind[kind]), f"{by_kind[kind][0].file}: {by_kind[kind][0].detail}")
        for severity, kinds in (("error", ERRORS), ("warning", WARNINGS))
        for kind in kinds
        if kind in by_kind
    ]
    headers, widths = ["", "check", "found", "the first"], [None, None, None, 96]
    table = tabulate(rows, headers=headers, maxcolwidths=widths)
    # The verdict, which alone is printed if there are no problems.
    errors = sum(problem.is_error for problem in report.problems)
    images = sum(dataset.num_images for dataset in report.datasets)
    verdict = (
        f"{images} images of {', '.join(d.name for d in report.datasets)}: {errors} errors, "
        f"{len(report.problems) - errors} warnings"
    )
    return f"{table}\n\n{verdict}" if rows else verdict


def as_document(report: Report) -> dict[str, Any]:
    """Everything that was found."""
    return {
        "errors": sum(problem.is_error for problem in report.problems),
        "warnings": sum(not problem.is_error for problem in report.problems),
        "datasets": [
            {
                "name": dataset.name,
                "task": dataset.task,
                "images": dataset.num_images,
                "ignored_pixels": dataset.ignored,
                "classes": [
                    {"name": name, "images": dataset.images[i]}
                    | {"segments": dataset.segments[i], "pixels": dataset.pixels[i]}
                    for i, name in enumerate(dataset.class_names)
                ],
                "faults": list(map(_describe, dataset.problems)),
            }
            for dataset in report.datasets
        ],
        "between": list(map(_describe, report.between)),
        "meanings": ERRORS | WARNINGS,
    }


def _describe(problem: Problem) -> dict[str, Any]:
    return {"severity": "error" if problem.is_error else "warning", **asdict(problem)}
