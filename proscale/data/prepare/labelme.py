"""labelme: a JSON file beside every image (https://github.com/wkentaro/labelme)."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from proscale.data.formats.json_file import LIST, TEXT, Keys, check_records, read_json
from proscale.data.prepare.conversion import Tally
from proscale.data.prepare.outlines import (
    Outline,
    OutlinedImage,
    image_file,
    polygon,
    prepare_splits,
    rectangle,
    tell_left_out,
)
from proscale.errors import DataError, MissingFileError, shown

_SHAPES: Keys = {"label": TEXT, "points": LIST, "shape_type": TEXT}


def prepare_instances(root: Path, workers: int) -> list[Tally]:
    """``annotations/instances_{train,val}.json``."""
    return prepare_splits(root, _read_folder)


def _read_folder(folder: Path) -> Iterator[OutlinedImage]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise MissingFileError(f"there are no *.json in {folder}: expected one beside every image")
    left_out: Counter[str] = Counter()
    for file in files:
        content = read_json(file)
        shapes = content.get("shapes")
        if not isinstance(shapes, list):
            raise DataError(f"{file}: it has no list 'shapes': expected a file of labelme's")
        check_records(shapes, _SHAPES, f"{file}: shapes")
        path, size = image_file(folder, content.get("imagePath"), f"{file}: imagePath")
        groups: dict[tuple[str, Any], list[list[float]]] = {}
        for place, shape in enumerate(shapes):
            where = f"{file}: shapes[{place}]"
            group = shape.get("group_id")
            if group is not None and type(group) is not int:
                raise DataError(f"{where}.group_id is {shown(group)}: expected an integer")
            # Polygons of one group are one instance, in parts.
            key = shape["label"], f"{where}" if group is None else group
            points = shape["points"]
            if not all(isinstance(point, list) and len(point) == 2 for point in points):
                raise DataError(f"{where}.points is {shown(points)}: expected [[x, y], …]")
            values = list(chain(*points))
            if shape["shape_type"] == "rectangle" and len(points) == 2:
                (left, right), (top, bottom) = sorted(values[::2]), sorted(values[1::2])
                values = rectangle(left, top, right, bottom)
            elif shape["shape_type"] != "polygon":
                left_out[shape["shape_type"]] += 1
                continue
            groups.setdefault(key, []).append(polygon(values, f"{where}.points"))
        outlines = [Outline(label, polygons) for (label, _), polygons in groups.items()]
        yield OutlinedImage(path, size, outlines)
    tell_left_out(left_out, folder)
