"""Checks data sets: each image and its annotation in parallel, then what several have in common."""

import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from proscale.data.check.faults import Fault, first_few
from proscale.data.check.images import inspect_image
from proscale.data.check.samples import Contents, Sample, read_contents
from proscale.data.check.truths import Classes, Findings

_CHUNK = 16


@dataclass
class DatasetReport:
    """What was found in a data set.

    Attributes:
        name: as registered.
        task: ``panoptic``, ``instance`` or ``semantic``.
        class_names: of all classes.
        num_images: looked at.
        faults: what is wrong.
        images, segments, pixels: how many have, or are of, each class, by its place.
        digests: files by what they show.
        image_ids: of images that have one.
    """

    name: str
    task: str
    class_names: Sequence[str]
    num_images: int
    faults: list[Fault]
    images: Counter[int] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    digests: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    image_ids: set = field(default_factory=set)

    @property
    def file_names(self) -> set[str]:
        return {Path(file).name for files in self.digests.values() for file in files}


@dataclass
class Report:
    """What was found in several data sets, and between them."""

    datasets: list[DatasetReport]
    between: list[Fault]

    @property
    def faults(self) -> list[Fault]:
        return [*(f for dataset in self.datasets for f in dataset.faults), *self.between]

    @property
    def has_errors(self) -> bool:
        return any(fault.is_error for fault in self.faults)


def check_datasets(names: Sequence[str], *, workers: int) -> Report:
    """Check registered data sets, and that no picture is in two of them.

    Args:
        names: each once.
        workers: processes; 1 stays in this one.

    Raises:
        ValueError: a data set has no annotations of a kind that can be checked.
    """
    datasets = [_check(read_contents(name), workers) for name in names]
    pairs = combinations(datasets, 2)
    return Report(datasets, [fault for a, b in pairs for fault in _compare(a, b)])


def _check(contents: Contents, workers: int) -> DatasetReport:
    report = DatasetReport(
        name=contents.name,
        task=contents.task,
        class_names=contents.classes.names,
        num_images=len(contents.samples),
        faults=contents.faults,
    )
    results = _map(partial(_check_sample, contents.classes), contents.samples, workers)
    progress = tqdm(results, contents.name, len(contents.samples), unit="image", disable=None)
    for sample, (digest, findings) in zip(contents.samples, progress, strict=True):
        report.faults += findings.faults
        report.images.update(findings.segments.keys())
        report.segments.update(findings.segments)
        report.pixels.update(findings.pixels)
        if digest is not None:
            report.digests[digest].append(sample.image)
        if sample.image_id is not None:
            report.image_ids.add(sample.image_id)
    report.faults += _duplicates(report)
    absent = [n for i, n in enumerate(report.class_names) if not report.segments[i]]
    if absent and contents.samples:
        detail = f"{len(absent)} of {len(report.class_names)} classes: {first_few(absent)}"
        report.faults.append(Fault("class-absent", contents.name, detail))
    return report


def _check_sample(classes: Classes, sample: Sample) -> tuple[str | None, Findings]:
    image = inspect_image(sample.image, sample.size)
    findings = sample.truth.check(sample.image, image.size, classes)
    findings.faults = image.faults + findings.faults
    return image.digest, findings


def _map(function: partial, samples: Sequence[Sample], workers: int) -> Iterator:
    if workers == 1:
        yield from map(function, samples)
        return
    with multiprocessing.Pool(workers) as pool:
        yield from pool.imap(function, samples, chunksize=_CHUNK)


def _duplicates(report: DatasetReport) -> Iterable[Fault]:
    for files in report.digests.values():
        if len(files) > 1:
            yield Fault("image-duplicate", files[0], f"also {first_few(files[1:])}")


def _compare(a: DatasetReport, b: DatasetReport) -> Iterable[Fault]:
    both = f"{a.name}, {b.name}"
    for digest in a.digests.keys() & b.digests.keys():
        files = a.digests[digest][0], b.digests[digest][0]
        yield Fault("leaked-image", files[0], f"the same picture is {files[1]} of {b.name}")
    for kind, mine, theirs in (
        ("name-in-both", a.file_names, b.file_names),
        ("id-in-both", a.image_ids, b.image_ids),
    ):
        common = sorted(mine & theirs, key=str)
        if common:
            yield Fault(kind, both, f"{len(common)}: {first_few(common)}")
