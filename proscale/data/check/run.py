"""Checks data sets: each image and its annotation in parallel, then images that several share.

Training stops at the first error; here problems are collected. Annotation files of COCO's formats
and folders of label images are read leniently, anything else through Detectron2's catalog.
"""

import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from proscale.data.check.sample import Findings, check_sample, check_unique
from proscale.data.datasets.registration import instance_metadata
from proscale.data.formats.coco_format import (
    INSTANCE_CATEGORIES,
    Entries,
    load_coco_instances,
    load_coco_panoptic,
    read_categories,
)
from proscale.data.formats.problems import Problem, first_few
from proscale.data.formats.semantic_folders import IMAGE_SUFFIXES, load_semantic_folders, mask_files
from proscale.data.mappers.annotations import (
    AnnotationReader,
    InstanceReader,
    PanopticReader,
    SemanticReader,
)
from proscale.errors import ConfigError, DataError

# Keys of Detectron2's entries by task; panoptic ones may have labels besides.
_TASKS_BY_KEY = {
    "segments_info": "panoptic",
    "annotations": "instance",
    "sem_seg_file_name": "semantic",
}
_CHUNK = 16


@dataclass
class DatasetReport:
    """Results for a data set.

    Attributes:
        task: ``panoptic``, ``instance`` or ``semantic``; ``unknown`` if it cannot be read.
        images, segments, pixels: how many have, or are of, each class, by its place.
        digests: files by their pixels.
        image_ids: of images that have one.
    """

    name: str
    task: str = "unknown"
    class_names: Sequence[str] = ()
    num_images: int = 0
    problems: list[Problem] = field(default_factory=list)
    images: Counter[int] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
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
    reader: AnnotationReader = InstanceReader()
    if report.task == "panoptic":
        reader = PanopticReader()
    elif report.task == "semantic":
        report.class_names, ignored = metadata["stuff_classes"], metadata["ignore_label"]
        reader = SemanticReader(num_classes=len(report.class_names), ignore_label=ignored)
    report.num_images = len(entries)
    # Images are decoded in parallel; counts are added up here.
    results = _map(partial(check_sample, reader, metadata.get("json_file", "")), entries, workers)
    progress = tqdm(results, name, len(entries), unit="image", disable=None)
    for entry, findings in zip(entries, progress, strict=True):
        report.problems += findings.problems
        report.images.update(findings.segments.keys())
        report.segments.update(findings.segments)
        report.pixels.update(findings.pixels)
        if findings.digest is not None:
            report.digests[findings.digest].append(entry["file_name"])
        if entry.get("image_id") is not None:
            report.image_ids.add(entry["image_id"])
    # The same pixels twice within a data set, under whatever names.
    for files in report.digests.values():
        if len(files) > 1:
            detail = f"also {first_few(files[1:])}"
            report.problems.append(Problem("image-duplicate", files[0], detail))
    # A class without a segment cannot be learned, or not be evaluated.
    absent = [n for i, n in enumerate(report.class_names) if not report.segments[i]]
    if absent and entries:
        detail = f"{len(absent)} of {len(report.class_names)} classes: {first_few(absent)}"
        report.problems.append(Problem("class-absent", name, detail))
    return report


def _read(metadata: dict[str, Any], problems: list[Problem]) -> tuple[str, Entries]:
    """The task and the entries of a data set, read leniently."""
    report, name = problems.append, metadata["name"]
    evaluator = metadata.get("evaluator_type", "")
    # Cityscapes' panoptic file has names of images that do not exist; its loader mends them.
    if metadata.get("panoptic_json") and not evaluator.startswith("cityscapes"):
        entries = load_coco_panoptic(metadata, report)
        images = Counter(entry["file_name"] for entry in entries)
        check_unique(images, metadata["panoptic_json"], "image file", "image-repeated", report)
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
        entries = load_coco_instances(metadata, report)
        images = Counter(entry["file_name"] for entry in entries)
        check_unique(images, path, "image file", "image-repeated", report)
        ids = Counter(a["id"] for entry in entries for a in entry["annotations"])
        check_unique(ids, path, "annotation", "segment-repeated", report)
        return "instance", entries
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
    task = next((task for key, task in _TASKS_BY_KEY.items() if key in entries[0]), None)
    if task is None:
        there, expected = ", ".join(entries[0]), ", ".join(_TASKS_BY_KEY)
        raise ConfigError(f"data set {name} has entries with {there}: expected {expected}")
    return task, entries


def _unused(
    kind: str, folder: str, suffixes: tuple[str, ...], used: Collection[str]
) -> Iterable[Problem]:
    files = {file for file in Path(folder).glob("*") if file.suffix.lower() in suffixes}
    unused = sorted(file.name for file in files - {Path(file) for file in used})
    if unused:
        detail = (
            f"{len(unused)} files that are in no pair of image and annotation: {first_few(unused)}"
        )
        yield Problem(kind, folder, detail)


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
