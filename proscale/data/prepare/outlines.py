"""COCO's instance format from what annotation tools export: polygons and rectangles of images.

Each tool has a module that reads its files. Splits are the folders ``train`` and ``val`` (or
``valid``); without them every fifth image is for validation. Names of files are relative to the
folder of the export.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycocotools.mask

from proscale.data.formats.image_file import stored_size
from proscale.data.formats.json_file import NUMBERS
from proscale.data.formats.problems import first_few
from proscale.data.formats.run_lengths import run_lengths
from proscale.data.prepare.conversion import Tally
from proscale.errors import DataError, MissingFileError, shown
from proscale.utils.types import Size
from proscale.utils.untrusted import inside, is_name
from proscale.utils.whole_files import whole_file

VALIDATION_STEP = 5  # every fifth image
_SPLITS = {"train": ("train",), "val": ("val", "valid")}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outline:
    """One instance: its class and its polygons [x0, y0, x1, y1, …] in pixels."""

    label: str
    polygons: list[list[float]]


@dataclass(frozen=True)
class OutlinedImage:
    """An image file of this (height, width), and its instances."""

    path: Path
    size: Size
    outlines: Sequence[Outline]


def image_file(folder: Path, name: Any, where: str) -> tuple[Path, Size]:
    """The image of this name in ``folder`` or in its ``images``, and its size.

    Raises:
        DataError: ``name`` leaves the folder, or the image is missing or unreadable.
    """
    places = [Path(inside(place, name, where)) for place in (folder, folder / "images")]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise MissingFileError(f"{where} is {shown(name)}, but there is no {places[0]}")
    return path, stored_size(path)


def rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    """A box as a polygon."""
    return [left, top, right, top, right, bottom, left, bottom]


def polygon(values: Any, where: str) -> list[float]:
    """Coordinates x0, y0, x1, y1, … of three points or more; a DataError for anything else."""
    if not NUMBERS.accepts(values) or len(values) < 6 or len(values) % 2:
        raise DataError(f"{where} is {shown(values)}: expected x and y of three points or more")
    return values


def tell_left_out(kinds: Counter[str], where: Path) -> None:
    """Say which shapes have no area that could be an instance."""
    if kinds:
        found = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        _logger.warning("%s: left out: %s: expected polygons and rectangles", where, found)


def prepare_splits(root: Path, read: Callable[[Path], Iterable[OutlinedImage]]) -> list[Tally]:
    """``annotations/instances_{train,val}.json`` of what ``read`` finds in a folder."""
    folders = {
        split: root / name
        for split, names in _SPLITS.items()
        for name in names
        if (root / name).is_dir()
    }
    if folders:
        splits = {split: list(read(folder)) for split, folder in folders.items()}
    else:
        images = sorted(read(root), key=lambda image: image.path)
        # Of the images in the order of their names.
        validation = images[VALIDATION_STEP - 1 :: VALIDATION_STEP]
        splits = {"train": [i for i in images if i not in validation], "val": validation}
    return write_instances(root, splits)


def write_instances(
    root: Path, splits: Mapping[str, Sequence[OutlinedImage]], names: Sequence[str] = ()
) -> list[Tally]:
    """``annotations/instances_SPLIT.json`` below ``root`` for every split with images.

    Categories are ``names``, or those of all outlines, in alphabetical order.

    Raises:
        DataError: there are no outlines, or a name or a polygon is not usable.
    """
    outlines = [o for images in splits.values() for image in images for o in image.outlines]
    labels = {outline.label for outline in outlines}
    if wrong := [label for label in labels if not is_name(label)]:
        raise DataError(f"{root}: the class {shown(wrong[0])}: expected a text on one line")
    if not outlines:
        raise DataError(f"{root}: there are no outlines: expected polygons or rectangles")
    categories = [{"id": i, "name": n} for i, n in enumerate(names or sorted(labels), start=1)]
    ids = {category["name"]: category["id"] for category in categories}
    tallies = []
    for split, images in splits.items():
        if not images:
            continue
        content: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
        for image_id, image in enumerate(images, start=1):
            (height, width), name = image.size, image.path.relative_to(root).as_posix()
            size = {"height": height, "width": width}
            content["images"].append({"id": image_id, "file_name": name, **size})
            for outline in image.outlines:
                try:
                    code = run_lengths(outline.polygons, height, width)
                except ValueError as error:
                    raise DataError(f"{image.path}: {outline.label}: {error}") from error
                # Less than a pixel cannot be learned.
                if not (area := int(pycocotools.mask.area(code))):
                    _logger.warning("%s: a %s has no pixels: left out", image.path, outline.label)
                    continue
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": image_id,
                        "category_id": ids[outline.label],
                        "iscrowd": 0,
                        "area": area,
                        "bbox": pycocotools.mask.toBbox(code).tolist(),
                        "segmentation": outline.polygons,
                    }
                )
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(json.dumps(content))
        tallies.append(Tally(path, made=len(images), kept=0))
    _logger.info("%s: classes %s", root, first_few(ids, 20))
    return tallies
