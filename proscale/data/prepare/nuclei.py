"""Nuclei in microscopy (Data Science Bowl 2018, stage 1) in COCO's formats.

As published, ``stage1_train/ID`` has an image in ``images`` and a black and white mask of every
nucleus in ``masks``, which do not overlap. There is no published split: of the images in the order
of their ids every seventh is for validation.
"""

from pathlib import Path

import numpy as np

from proscale.data.datasets.nuclei import CATEGORIES, FOLDER
from proscale.data.formats.image_file import VOID, open_image, read_image
from proscale.data.prepare.conversion import (
    CocoPart,
    Tally,
    coco_part,
    convert_images,
    convert_to_coco,
    find_sources,
    write_png,
)
from proscale.errors import DataError, MissingFileError

NUCLEUS, BACKGROUND = (category["id"] for category in CATEGORIES)
VALIDATION_STEP = 7  # every seventh image


def prepare_images(root: Path, workers: int) -> list[Tally]:
    """``train`` and ``val``: the images, without their alpha channel."""

    def convert(source: Path, target: Path) -> None:
        write_png(target, read_image(str(source), "RGB"))

    tallies = []
    for split, sources in _sources(root).items():
        folder = root / FOLDER / split
        files = {folder / f"{id_}.png": source for id_, source in sources.items()}
        tallies.append(convert_images(files, convert, folder=folder, workers=workers))
    return tallies


def prepare_panoptic(root: Path, workers: int) -> list[Tally]:
    """``annotations/panoptic_{train,val}.json`` with ``panoptic_{train,val}``: nuclei are things,
    and background is stuff."""
    return _prepare_coco(root, "panoptic", workers)


def prepare_instances(root: Path, workers: int) -> list[Tally]:
    """``annotations/instances_{train,val}.json``."""
    return _prepare_coco(root, "instances", workers)


def _prepare_coco(root: Path, kind: str, workers: int) -> list[Tally]:
    is_panoptic = kind == "panoptic"

    def category_of(id_: int) -> int | None:
        if id_ != _BACKGROUND_ID:
            return NUCLEUS
        return BACKGROUND if is_panoptic else None

    def convert(image_id: str, source: Path, png: Path) -> CocoPart:
        image = {"id": image_id, "file_name": f"{image_id}.png"}
        return coco_part(image, _segment_ids(source), category_of, png if is_panoptic else None)

    folder = root / FOLDER
    return [
        convert_to_coco(
            sources,
            convert,
            target=folder / "annotations" / f"{kind}_{split}.json",
            png_folder=folder / f"{kind}_{split}",
            categories=[c for c in CATEGORIES if is_panoptic or c["isthing"]],
            png_suffix=".png" if is_panoptic else "",
            workers=workers,
        )
        for split, sources in _sources(root).items()
    ]


def _sources(root: Path) -> dict[str, dict[str, Path]]:
    """The image files of each split, by the images' ids."""
    published = root / FOLDER / "stage1_train"
    (files,) = find_sources({"stage1_train": published}, "*/images/*.png").values()
    by_id = {file.parents[1].name: file for file in files}
    if len(by_id) < len(files):
        raise DataError(f"{published}: a folder has several images: expected one in each")
    validation = sorted(by_id)[VALIDATION_STEP - 1 :: VALIDATION_STEP]
    splits = {"train": [id_ for id_ in sorted(by_id) if id_ not in validation], "val": validation}
    return {split: {id_: by_id[id_] for id_ in ids} for split, ids in splits.items() if ids}


# 0 is void, of which there is none.
_BACKGROUND_ID = VOID + 1


def _segment_ids(source: Path) -> np.ndarray:
    """Segment ids of the nuclei of an image, ``(H, W)`` int32, from two."""
    with open_image(source) as image:
        ids = np.full((image.height, image.width), _BACKGROUND_ID, dtype=np.int32)
    masks = sorted((source.parents[1] / "masks").glob("*.png"))
    if not masks:
        raise MissingFileError(f"there are no masks in {source.parents[1] / 'masks'}")
    for id_, path in enumerate(masks, start=_BACKGROUND_ID + 1):
        with open_image(path) as image:
            mask = np.asarray(image.convert("L")) > 0
        if mask.shape != ids.shape:
            detail = f"it has (height, width) {mask.shape}: expected {ids.shape}"
            raise DataError(f"{path}: {detail}, that of its image")
        # Should two masks share a pixel, the first has it.
        ids[mask & (ids == _BACKGROUND_ID)] = id_
    return ids
