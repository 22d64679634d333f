"""Label images from COCO's panoptic annotations: of all 133 classes, and of the stuff alone.

Crowds have their class here: for semantic segmentation it does not matter how many there are.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from proscale.data.datasets.registration import detectron2_metadata
from proscale.data.formats.coco_format import check_panoptic_annotations
from proscale.data.formats.image_file import VOID, read_panoptic_png, relabel
from proscale.data.formats.json_file import read_json
from proscale.data.formats.label_table import IGNORE_LABEL
from proscale.data.prepare.conversion import Tally, convert_images, write_png
from proscale.errors import DataError, MissingFileError
from proscale.utils.untrusted import inside

SPLITS = ("train2017", "val2017")


def prepare_semantic(root: Path, workers: int) -> list[Tally]:
    """``panoptic_semseg_{train,val}2017``: the contiguous class ids 0 to 132."""
    metadata = detectron2_metadata("coco_2017_val_panoptic")
    things = metadata["thing_dataset_id_to_contiguous_id"]
    labels = things | metadata["stuff_dataset_id_to_contiguous_id"]
    return _prepare(root / "coco", "semseg", labels, workers)


def prepare_stuff(root: Path, workers: int) -> list[Tally]:
    """``panoptic_stuff_{train,val}2017``: the 53 stuff classes as 1 to 53, and things as 0."""
    metadata = detectron2_metadata("coco_2017_val_panoptic_separated")
    # All things are one class, 0; stuff begins at 1.
    things = dict.fromkeys(metadata["thing_dataset_id_to_contiguous_id"], 0)
    labels = metadata["stuff_dataset_id_to_contiguous_id"] | things
    return _prepare(root / "coco", "stuff", labels, workers)


def _prepare(root: Path, kind: str, labels: Mapping[int, int], workers: int) -> list[Tally]:
    jsons = {split: root / "annotations" / f"panoptic_{split}.json" for split in SPLITS}
    there = {split: path for split, path in jsons.items() if path.is_file()}
    if not there:
        raise MissingFileError(f"there is none of {', '.join(map(str, jsons.values()))}")
    return [
        _prepare_split(path, root / f"panoptic_{s}", root / f"panoptic_{kind}_{s}", labels, workers)
        for s, path in there.items()
    ]


def _prepare_split(
    path: Path, sources: Path, folder: Path, labels: Mapping[int, int], workers: int
) -> Tally:
    content = read_json(path)
    check_panoptic_annotations(content, path)
    categories = {
        annotation["file_name"]: {s["id"]: s["category_id"] for s in annotation["segments_info"]}
        for annotation in content["annotations"]
    }
    # All categories are checked before the first file is written.
    unknown = {c for segments in categories.values() for c in segments.values()} - set(labels)
    if unknown:
        raise DataError(f"{path}: segments of the categories {sorted(unknown)}, not COCO's")

    def convert(source: Path, target: Path) -> None:
        ids = read_panoptic_png(source)
        # From segment to category, and from there to label; void is ignored.
        segments = categories[str(source.relative_to(sources))]
        values = {id_: labels[category] for id_, category in segments.items()}
        try:
            image = relabel(ids, values | {VOID: IGNORE_LABEL}, np.uint8)
        except ValueError as error:
            raise DataError(f"{source}: {error} in {path}") from error
        write_png(target, image)

    # Names come from the file: none may lead out of its folder.
    where = f"{path}: file_name"
    files = {Path(inside(folder, name, where)): sources / name for name in categories}
    return convert_images(files, convert, folder=folder, workers=workers)
