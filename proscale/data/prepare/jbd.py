"""COCO keypoint files of the jump broadcast data set from the tables that its authors give out.

``jump_broadcast`` holds ``train.csv``, ``val.csv`` and ``bbox.csv``, and the frames of the videos
as ``EVENT/EVENT_(FRAME).jpg``. They get a place in ``images/{train,val}`` as links.
"""

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from proscale.data.datasets.jbd import CATEGORY, FOLDER, KEYPOINT_NAMES, LINKS, SPLITS
from proscale.data.formats.image_file import stored_size
from proscale.data.prepare.conversion import Tally, convert_images
from proscale.errors import DataError, MissingFileError, shown
from proscale.utils.untrusted import read_bounded
from proscale.utils.whole_files import whole_file

# Size of a table that is read; those of the data set have a few megabytes.
MAX_BYTES = 2**28
# Coordinates in pixels, far outside of any frame.
_MAX_PIXELS = 10**6

# COCO counts keypoints of links from 1.
_CATEGORY = CATEGORY | {
    "keypoints": list(KEYPOINT_NAMES),
    "skeleton": [[a + 1, b + 1] for a, b in LINKS],
}


class _Row(NamedTuple):
    """A row of a table by its columns, and where it is, for messages."""

    where: str
    values: Mapping[str, str]

    def number(self, column: str) -> float:
        text = self.values[column]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        # Not a number fails this, too.
        if not -_MAX_PIXELS <= value <= _MAX_PIXELS:
            expected = f"expected a number of pixels, at most {_MAX_PIXELS}"
            raise DataError(f"{self.where}: {column} is {shown(text)}: {expected}")
        return int(value) if value == int(value) else value

    def digits(self, column: str, most: int) -> int:
        text = self.values[column]
        if not re.fullmatch(rf"[0-9]{{1,{most}}}", text):
            raise DataError(f"{self.where}: {column} is {shown(text)}: expected 1 to {most} digits")
        return int(text)


def prepare_poses(root: Path, workers: int) -> list[Tally]:
    """``annotations/{train,val}_jump.json``, and the frames they name in ``images/{train,val}``."""
    root = root / FOLDER
    tables = {split: root / f"{split}.csv" for split in SPLITS}
    there = {split: path for split, path in tables.items() if path.is_file()}
    if not there:
        raise MissingFileError(f"there is none of {', '.join(map(str, tables.values()))}")
    boxes = _read_boxes(root / "bbox.csv")
    return [_prepare_split(root, split, path, boxes, workers) for split, path in there.items()]


def _prepare_split(
    root: Path, split: str, table: Path, boxes: Mapping[str, list[float]], workers: int
) -> Tally:
    folder = root / "images" / split
    annotations, files = {}, {}
    columns = [f"{name}_{value}" for name in KEYPOINT_NAMES for value in "xys"]
    for row in _read_table(table, ";", ("event", "frame_num", *columns), skip=1):
        event, frame = row.digits("event", 3), row.digits("frame_num", 5)
        name = f"{event}_({frame:05d})"
        # Frames without a box are left out.
        if name not in boxes:
            continue
        # The number of the event followed by that of the frame.
        id_ = int(f"{event}{frame:05d}")
        if id_ in annotations:
            raise DataError(f"{row.where}: event {event}, frame {frame} is there twice")
        annotations[id_] = {
            "id": id_,
            "image_id": id_,
            "category_id": CATEGORY["id"],
            "iscrowd": 0,
            "bbox": boxes[name],
            **_keypoints(row),
        }
        file = Path(str(event), f"{name}.jpg")
        # Frames may lie in their place already.
        target = folder / file
        source = target if target.is_file() else root / file
        if not source.is_file():
            raise MissingFileError(f"{row.where}: there is no {root / file}")
        files[id_] = target, source
    if not annotations:
        raise DataError(f"{table}: it has no frame of {root / 'bbox.csv'}: expected one or more")
    tally = convert_images(dict(files.values()), _link, folder=folder, workers=workers)
    with ThreadPoolExecutor(workers) as pool:
        sizes = pool.map(lambda file: stored_size(str(file[0])), files.values())
        images = [
            {"id": id_, "file_name": str(target.relative_to(folder)), "height": h, "width": w}
            for (id_, (target, _)), (h, w) in zip(files.items(), sizes, strict=True)
        ]
    path = root / "annotations" / f"{split}_jump.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": list(annotations.values())}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content | {"categories": [_CATEGORY]}))
    return Tally(path, tally.made, tally.kept)


def _keypoints(row: _Row) -> dict[str, object]:
    """Keypoints of a row as COCO has them; those with s = 0 are not labelled."""
    values: list[float] = []
    for name in KEYPOINT_NAMES:
        is_labelled = row.number(f"{name}_s") != 0
        # Where there is no label the coordinates say nothing.
        place = [row.number(f"{name}_{axis}") for axis in "xy"] if is_labelled else [0, 0]
        values += [*place, 2 * is_labelled]
    return {"keypoints": values, "num_keypoints": sum(value > 0 for value in values[2::3])}


def _read_boxes(path: Path) -> dict[str, list[float]]:
    """Boxes [x, y, width, height] by frame, ``EVENT_(FRAME)``."""
    boxes = {}
    columns = ("image_id", "min_x", "min_y", "width", "height")
    for row in _read_table(path, ",", columns):
        name = row.values["image_id"]
        if name in boxes:
            raise DataError(f"{row.where}: image_id {shown(name)} is there twice: expected once")
        box = [row.number(column) for column in columns[1:]]
        if min(box[2:]) <= 0:
            expected = "expected a width and height above 0"
            raise DataError(f"{row.where}: the box of {shown(name)} is {box}: {expected}")
        boxes[name] = box
    return boxes


def _read_table(
    path: Path, delimiter: str, columns: tuple[str, ...], *, skip: int = 0
) -> Iterator[_Row]:
    """The rows of a CSV file that has these columns below ``skip`` lines."""
    try:
        lines = read_bounded(path, limit=MAX_BYTES).decode("utf-8-sig").splitlines()
        reader = csv.reader(lines[skip:], delimiter=delimiter, skipinitialspace=True)
        header = [name.strip() for name in next(reader, [])]
        if missing := [column for column in columns if column not in header]:
            raise DataError(
                f"{path}, line {skip + 1}: there is no column {missing[0]}: expected the names of "
                f"columns, separated by {delimiter!r}"
            )
        for values in reader:
            where = f"{path}, line {skip + reader.line_num}"
            # An empty line, at the end say.
            if not values:
                continue
            if len(values) != len(header):
                raise DataError(f"{where}: {len(values)} values: expected {len(header)}")
            yield _Row(where, {k: v.strip() for k, v in zip(header, values, strict=True)})
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text in UTF-8 ({error.reason})") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a table ({error})") from error


def _link(source: Path, target: Path) -> None:
    # A link that leads nowhere may be there.
    target.unlink(missing_ok=True)
    # Relative, so that the folder can be moved.
    target.symlink_to(os.path.relpath(source, target.parent))
