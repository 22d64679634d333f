"""YOLO's format of segments: a text file for every image.

A line is a class and x0 y0 x1 y1 …, fractions of the image's sides. Names of classes are in
``data.yaml``; folders are ``images/train`` with ``labels/train``, or ``train/images`` with
``train/labels``.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from proscale.data.formats.image_file import stored_size
from proscale.data.formats.json_file import NUMBERS
from proscale.data.formats.semantic_folders import IMAGE_SUFFIXES
from proscale.data.prepare.conversion import Tally
from proscale.data.prepare.outlines import Outline, OutlinedImage, rectangle, write_instances
from proscale.errors import DataError, MissingFileError, shown
from proscale.utils.types import Size
from proscale.utils.untrusted import is_name, read_bounded

_LIMIT = 2**26  # bytes of a text file

_logger = logging.getLogger(__name__)


def prepare_instances(root: Path, workers: int) -> list[Tally]:
    """``annotations/instances_{train,val}.json``."""
    names = _read_names(root)
    splits: dict[str, list[OutlinedImage]] = {}
    for split, folder in (("train", "train"), ("val", "val"), ("val", "valid")):
        for place in ("{}/" + folder, folder + "/{}"):
            images, labels = (root / place.format(kind) for kind in ("images", "labels"))
            if images.is_dir():
                splits[split] = list(_read_folder(images, labels, names))
    if not splits:
        raise MissingFileError(
            f"there is neither {root / 'images/train'} nor {root / 'train/images'}"
        )
    return write_instances(root, splits, names)


def _read_names(root: Path) -> list[str]:
    files = [*root.glob("*.yaml"), *root.glob("*.yml")]
    if len(files) != 1:
        raise DataError(f"{root}: it has {len(files)} YAML files: expected one, data.yaml")
    try:
        content = yaml.safe_load(read_bounded(files[0], limit=2**20))
    # RecursionError: lists nested too deeply; ValueError: days that are on no calendar.
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{files[0]}: not a YAML file") from error
    names: Any = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(map(str, names)) == sorted(map(str, range(len(names)))):
        names = [names.get(i, names.get(str(i))) for i in range(len(names))]
    is_list = isinstance(names, list) and len(names) > 0 and all(map(is_name, names))
    if not is_list or len(set(names)) < len(names):
        raise DataError(f"{files[0]}: names is {shown(names)}: expected a list of names, each once")
    return names


def _read_folder(images: Path, labels: Path, names: list[str]) -> Iterator[OutlinedImage]:
    boxes = 0
    for path in sorted(images.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        size, outlines = stored_size(path), []
        text = labels / f"{path.stem}.txt"
        # An image without a file has no instances.
        lines = _read_lines(text) if text.is_file() else []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                label, values = _parse(line.split(), size, names, f"{text}, line {number}")
                boxes += len(line.split()) == 5
                outlines.append(Outline(label, [values]))
        yield OutlinedImage(path, size, outlines)
    if boxes:
        _logger.warning("%s: %d lines are boxes: expected TASK: detection", labels, boxes)


def _read_lines(path: Path) -> list[str]:
    try:
        return read_bounded(path, limit=_LIMIT).decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text in UTF-8") from error


def _parse(words: list[str], size: Size, names: list[str], where: str) -> tuple[str, list[float]]:
    """Class and polygon in pixels of a line."""
    try:
        class_, *values = map(float, words)
    except ValueError as error:
        raise DataError(f"{where}: {shown(' '.join(words))}: expected numbers") from error
    if class_ not in range(len(names)):
        raise DataError(f"{where}: class {words[0]}: expected 0 to {len(names) - 1}")
    is_box = len(values) == 4
    if not NUMBERS.accepts(values) or not (is_box or (len(values) >= 6 and len(values) % 2 == 0)):
        raise DataError(f"{where}: {len(values)} numbers: expected x and y of three points or more")
    height, width = size
    pixels = [value * (height if i % 2 else width) for i, value in enumerate(values)]
    if is_box:
        # Centre and sides.
        x, y, w, h = pixels
        pixels = rectangle(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    return names[int(class_)], pixels
