"""Checks an image and its annotation, read leniently: errors, and warnings."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pycocotools.mask

from proscale.data.formats.image_file import (
    check_stated_size,
    exif_orientation,
    open_image,
    to_array,
)
from proscale.data.formats.problems import Problem, Reporter
from proscale.data.mappers.annotations import (
    AnnotationReader,
    Entry,
    InstanceReader,
    PanopticReader,
    SemanticReader,
    count_values,
)
from proscale.errors import DataError, MissingFileError, shown
from proscale.utils.types import Size


@dataclass
class Findings:
    """Results of checking one image.

    Attributes:
        problems: of the image and its annotation.
        digest: of its pixels in RGB; the same picture has the same, whatever the file's format.
        segments, pixels: how many are of each class.
    """

    problems: list[Problem] = field(default_factory=list)
    digest: str | None = None
    segments: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)

    def count(self, class_: int | None, area: int) -> None:
        """Count a segment; None is an unknown class."""
        if class_ is not None and area:
            self.segments[class_] += 1
            self.pixels[class_] += area


def check_sample(reader: AnnotationReader, annotation_file: str, entry: Entry) -> Findings:
    """Check one entry of a data set.

    Args:
        reader: of its annotation.
        annotation_file: that lists the entry, or the empty string; for messages.
        entry: in Detectron2's format; without ``reader.key`` only its image is checked.
    """
    findings = Findings()
    stated = (entry["height"], entry["width"]) if "height" in entry else None
    size = _check_image(entry["file_name"], stated, findings)
    if reader.key not in entry:
        return findings
    # Errors in training are reported by the reader, implausible values here.
    if isinstance(reader, PanopticReader):
        _check_panoptic(reader, entry, size, findings)
    elif isinstance(reader, SemanticReader):
        _check_semantic(reader, entry, size, findings)
    elif isinstance(reader, InstanceReader):
        _check_instances(reader, entry, annotation_file or entry["file_name"], findings)
    return findings


def check_unique(
    counts: Mapping[Any, int], file: str, name: str, kind: str, report: Reporter
) -> None:
    """Report ids that are there more than once."""
    for id_, times in counts.items():
        if times > 1:
            segment = id_ if kind == "segment-repeated" else None
            report(Problem(kind, file, f"{name} {id_}, {times} times", segment))


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


def _check_panoptic(
    reader: PanopticReader, entry: Entry, size: Size | None, findings: Findings
) -> None:
    report, png = findings.problems.append, entry["pan_seg_file_name"]
    segments = entry["segments_info"]
    check_unique(Counter(s["id"] for s in segments), png, "segment", "segment-repeated", report)
    ids = reader.read_ids(entry, size, report)
    areas = {} if ids is None else count_values(ids)
    for segment in segments:
        id_, stated = segment["id"], segment.get("area")
        where, area = f"segment {id_}", areas.get(id_, 0)
        _check_area(stated, where, id_, png, report)
        # Boxes are those of the map, if it is the image's.
        if ids is not None and ids.shape == size:
            _check_box(segment.get("bbox"), size, where, id_, png, report)
        if area and _is_number(stated) and stated > 0 and stated != area:
            report(Problem("area-differs", png, f"{where}: area {stated}, {area} pixels", id_))
        findings.count(segment["category_id"], area)
    _check_targets(segments, "segments", entry, report)


def _check_instances(reader: InstanceReader, entry: Entry, file: str, findings: Findings) -> None:
    report, size = findings.problems.append, (entry["height"], entry["width"])
    for index, annotation in enumerate(entry["annotations"]):
        id_ = annotation.get("id", index)
        where = f"annotation {id_} of {entry['file_name']}"
        _check_area(annotation.get("area"), where, id_, file, report)
        _check_box(annotation.get("bbox"), size, where, id_, file, report)
    # Crowds are checked and counted, too.
    for id_, annotation, code in reader.read_codes(entry, size, report, crowds=True):
        area = int(pycocotools.mask.area(code))
        if not area:
            detail = f"annotation {id_} of {entry['file_name']}"
            report(Problem("segment-without-pixels", file, detail, id_))
        findings.count(annotation["category_id"], area)
    _check_targets(entry["annotations"], "instances", entry, report)


def _check_semantic(
    reader: SemanticReader, entry: Entry, size: Size | None, findings: Findings
) -> None:
    labels = reader.read_labels(entry, size, findings.problems.append)
    if labels is None:
        return
    areas = count_values(labels)
    # Unlabelled pixels are of no class.
    areas.pop(reader.ignore_label, None)
    for label, area in areas.items():
        findings.count(label if 0 <= label < reader.num_classes else None, area)
    if not areas:
        detail = "no pixel has a label"
        findings.problems.append(Problem("image-empty", entry["file_name"], detail))


def _check_targets(
    segments: Sequence[Mapping[str, Any]], name: str, entry: Entry, report: Reporter
) -> None:
    if all(segment.get("iscrowd", 0) for segment in segments):
        detail = f"{len(segments)} {name}, all of them crowds"
        report(Problem("image-empty", entry["file_name"], detail))


def _check_area(area: Any, where: str, id_: Any, file: str, report: Reporter) -> None:
    if area is not None and not (_is_number(area) and area > 0):
        report(Problem("area-not-positive", file, f"{where}: area {shown(area)}", id_))


def _check_box(box: Any, size: Size, where: str, id_: Any, file: str, report: Reporter) -> None:
    """Look at a box [x, y, width, height], with a tolerance of a pixel for other ways to count."""
    if box is None:
        return
    # Four numbers, inside the image.
    is_box = isinstance(box, Sequence) and len(box) == 4 and all(map(_is_number, box))
    if is_box:
        (x, y, width, height), (bottom, right) = box, size
        if -1 <= x <= x + width <= right + 1 and -1 <= y <= y + height <= bottom + 1:
            return
    detail = f"{where}: bbox {shown(box)}, image (height, width) {size}"
    report(Problem("box-outside", file, detail, id_))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
