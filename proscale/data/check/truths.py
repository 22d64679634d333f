"""Compares masks with what annotation files say of them, for each of the three tasks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pycocotools.mask

from proscale.data.check.faults import Fault, first_few
from proscale.data.formats.label_image import read_label_image
from proscale.data.formats.panoptic_png import VOID, read_panoptic_png
from proscale.data.formats.run_lengths import run_lengths
from proscale.errors import DataError, shown
from proscale.utils.types import Size


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: of all classes.
        index: of the ids that segments may have, or labels, their place in ``names``.
        ignore_label: of pixels without a class; None where there is no such label.
    """

    names: Sequence[str]
    index: Mapping[int, int]
    ignore_label: int | None = None


@dataclass
class Findings:
    """What is in the truth of an image.

    Attributes:
        faults: what is wrong.
        segments: how many of each class, by its place.
        pixels: how many of each class, by its place.
    """

    faults: list[Fault] = field(default_factory=list)
    segments: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)

    def found(self, kind: str, file: str, detail: str, segment: int | None = None) -> None:
        self.faults.append(Fault(kind, file, detail, segment))


class Truth(Protocol):
    """What an annotation says of an image."""

    def check(self, image: str, size: Size | None, classes: Classes) -> Findings:
        """Look at everything.

        Args:
            image: its file, for messages.
            size: its (height, width); None if it could not be read.
            classes: of the data set.
        """


@dataclass(frozen=True)
class PanopticTruth:
    """A PNG file of segment ids, and the segments with ``id`` and ``category_id``."""

    mask: str
    segments: Sequence[Mapping[str, Any]]

    def check(self, image: str, size: Size | None, classes: Classes) -> Findings:
        findings = Findings()
        ids = _read_mask(read_panoptic_png, self.mask, size, findings)
        areas = None if ids is None else count_values(ids)
        # Boxes are those of the mask if it is the image's.
        shape = None if ids is None or ids.shape != size else size
        if areas is not None:
            areas.pop(VOID, None)
        listed = [segment["id"] for segment in self.segments]
        for id_, times in Counter(listed).items():
            if times > 1:
                findings.found("segment-repeated", self.mask, f"segment {id_}, {times} times", id_)
        for segment in self.segments:
            self._check_segment(segment, shape, areas, classes, findings)
        for id_ in sorted(set(areas or ()) - set(listed)):
            findings.found(
                "pixels-without-segment",
                self.mask,
                f"id {id_}, {areas[id_]} pixels; listed are {first_few(listed)}",
                id_,
            )
        if all(segment.get("iscrowd", 0) for segment in self.segments):
            findings.found("image-empty", image, f"{len(listed)} segments, all of them crowds")
        return findings

    def _check_segment(
        self,
        segment: Mapping[str, Any],
        shape: Size | None,
        areas: Mapping[int, int] | None,
        classes: Classes,
        findings: Findings,
    ) -> None:
        id_, category, stated = segment["id"], segment["category_id"], segment.get("area")
        _check_category(category, id_, self.mask, classes, findings)
        _check_area(stated, f"segment {id_}", id_, self.mask, findings)
        if shape is not None:
            _check_box(segment.get("bbox"), shape, f"segment {id_}", id_, self.mask, findings)
        if areas is None:
            return
        area = areas.get(id_, 0)
        if not area:
            findings.found("segment-without-pixels", self.mask, f"segment {id_}", id_)
        elif _is_number(stated) and stated > 0 and stated != area:
            findings.found(
                "area-differs", self.mask, f"segment {id_}: area {stated}, {area} pixels", id_
            )
        _count(category, area, classes, findings)


@dataclass(frozen=True)
class InstanceTruth:
    """Annotations with ``id``, ``category_id`` and ``segmentation``, as COCO has them."""

    file: str
    annotations: Sequence[Mapping[str, Any]]
    stated_size: Size

    def check(self, image: str, size: Size | None, classes: Classes) -> Findings:
        findings = Findings()
        height, width = self.stated_size
        for annotation in self.annotations:
            id_, category = annotation["id"], annotation["category_id"]
            where = f"annotation {id_} of {image}"
            _check_category(category, id_, self.file, classes, findings)
            _check_area(annotation.get("area"), where, id_, self.file, findings)
            box = annotation.get("bbox")
            _check_box(box, self.stated_size, where, id_, self.file, findings)
            try:
                code = run_lengths(annotation.get("segmentation"), height, width)
                area = int(pycocotools.mask.area(code))
            except ValueError as error:
                findings.found("segment-unreadable", self.file, f"{where}: {error}", id_)
                continue
            if not area:
                findings.found("segment-without-pixels", self.file, where, id_)
            _count(category, area, classes, findings)
        if all(annotation.get("iscrowd", 0) for annotation in self.annotations):
            findings.found(
                "image-empty", image, f"{len(self.annotations)} instances, all of them crowds"
            )
        return findings


@dataclass(frozen=True)
class SemanticTruth:
    """An image of labels."""

    mask: str

    def check(self, image: str, size: Size | None, classes: Classes) -> Findings:
        findings = Findings()
        labels = _read_mask(read_label_image, self.mask, size, findings)
        if labels is None:
            return findings
        areas = count_values(labels)
        areas.pop(classes.ignore_label, None)
        for label, area in areas.items():
            if label not in classes.index:
                accepted = f"0 to {len(classes.names) - 1} and {classes.ignore_label}"
                findings.found(
                    "label-out-of-range",
                    self.mask,
                    f"label {label}, {area} pixels: expected {accepted}",
                    label,
                )
            _count(label, area, classes, findings)
        if not areas:
            findings.found("image-empty", image, "no pixel has a label")
        return findings


def count_values(values: np.ndarray) -> dict[int, int]:
    """How often each integer occurs."""
    flat = values.ravel()
    if not flat.size:
        return {}
    # Runs are far fewer than pixels to sort.
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(starts, append=flat.size)
    unique, place = np.unique(flat[starts], return_inverse=True)
    counts = np.bincount(place, weights=lengths).astype(np.int64)
    return dict(zip(unique.tolist(), counts.tolist(), strict=True))


def _read_mask(read: Any, path: str, size: Size | None, findings: Findings) -> np.ndarray | None:
    try:
        mask = read(path)
    except FileNotFoundError:
        findings.found("mask-missing", path, "there is no such file")
        return None
    except DataError as error:
        findings.found("mask-unreadable", path, str(error).removeprefix(f"{path}: "))
        return None
    if size is not None and mask.shape != size:
        findings.found("mask-size", path, f"(height, width) {mask.shape}, its image {size}")
    return mask


def _check_category(
    category: int, id_: int, file: str, classes: Classes, findings: Findings
) -> None:
    if category not in classes.index:
        findings.found(
            "unknown-category",
            file,
            f"segment {id_}: category_id {category}; known are {first_few(sorted(classes.index))}",
            id_,
        )


def _check_area(area: Any, where: str, id_: int, file: str, findings: Findings) -> None:
    if area is not None and not (_is_number(area) and area > 0):
        findings.found("area-not-positive", file, f"{where}: area {shown(area)}", id_)


def _check_box(box: Any, size: Size, where: str, id_: int, file: str, findings: Findings) -> None:
    """Look at a box [x, y, width, height], with a tolerance of a pixel for other ways to count."""
    if box is None:
        return
    is_box = isinstance(box, Sequence) and len(box) == 4 and all(map(_is_number, box))
    if is_box:
        (x, y, width, height), (bottom, right) = box, size
        if -1 <= x <= x + width <= right + 1 and -1 <= y <= y + height <= bottom + 1:
            return
    findings.found(
        "box-outside", file, f"{where}: bbox {shown(box)}, image (height, width) {size}", id_
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _count(category: int, area: int, classes: Classes, findings: Findings) -> None:
    if category in classes.index and area:
        findings.segments[classes.index[category]] += 1
        findings.pixels[classes.index[category]] += area
