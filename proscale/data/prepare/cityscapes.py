"""Cityscapes' ``labelTrainIds`` images and its panoptic annotations.

The classes are those of ``cityscapesscripts``. Its own tools make the same files, one after
the other, and the first from polygons; here both come from the PNG files that are downloaded.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from proscale.data.datasets.cityscapes import (
    INSTANCES_PER_CLASS,
    INSTANCES_SUFFIX,
    LABELS_SUFFIX,
    SPLITS,
)
from proscale.data.formats.image_file import VOID, id_to_rgb, read_label_image, relabel
from proscale.data.formats.label_table import IGNORE_LABEL
from proscale.data.formats.run_lengths import describe_segments
from proscale.data.prepare.conversion import (
    CocoPart,
    Tally,
    convert_images,
    convert_to_coco,
    find_sources,
    write_png,
)
from proscale.errors import DataError, UserError

_LABEL_IDS_SUFFIX = "_gtFine_labelIds.png"


def prepare_semantic(root: Path, workers: int) -> list[Tally]:
    """``*_gtFine_labelTrainIds.png`` beside every ``*_gtFine_labelIds.png``."""
    # Labels that are not evaluated have the train ids 255 and -1.
    values = {
        label.id: label.trainId if 0 <= label.trainId < IGNORE_LABEL else IGNORE_LABEL
        for label in _labels()
        if label.id >= 0
    }

    def convert(source: Path, target: Path) -> None:
        try:
            image = relabel(read_label_image(source), values, np.uint8)
        except ValueError as error:
            raise DataError(f"{source}: {error}") from error
        write_png(target, image)

    tallies = []
    for folder, sources in _sources(root, _LABEL_IDS_SUFFIX).items():
        names = {source: source.name.removesuffix(_LABEL_IDS_SUFFIX) for source in sources}
        files = {source.with_name(name + LABELS_SUFFIX): source for source, name in names.items()}
        tallies.append(convert_images(files, convert, folder=folder, workers=workers))
    return tallies


def prepare_panoptic(root: Path, workers: int) -> list[Tally]:
    """``gtFine/cityscapes_panoptic_{train,val}`` and the JSON files of the same names."""
    # As in createPanopticImgs: evaluated labels by their ids, not by train ids.
    labels = {label.id: label for label in _labels()}
    categories = [
        {
            "id": label.id,
            "name": label.name,
            "color": list(label.color),
            "supercategory": label.category,
            "isthing": int(label.hasInstances),
        }
        for label in labels.values()
        if not label.ignoreInEval
    ]

    def convert(image_id: str, source: Path, png: Path) -> CocoPart:
        ids = read_label_image(source).astype(np.int32)
        segments = []
        for id_, (area, bbox, _) in describe_segments(ids).items():
            if id_ == VOID:
                continue
            # Stuff, and groups of objects that could not be separated, have their label as id.
            is_group = id_ < INSTANCES_PER_CLASS
            label = labels.get(id_ if is_group else id_ // INSTANCES_PER_CLASS)
            if label is None:
                raise DataError(f"{source}: id {id_} is of no label that Cityscapes knows")
            if not label.ignoreInEval:
                segment = {"id": id_, "category_id": label.id, "area": area, "bbox": bbox}
                segments.append(segment | {"iscrowd": int(is_group and label.hasInstances)})
        # Pixels that are not evaluated become void.
        ids[~np.isin(ids, [segment["id"] for segment in segments])] = VOID
        write_png(png, id_to_rgb(ids))
        height, width = ids.shape
        # The name that cityscapesscripts writes, of a file that does not exist.
        name = f"{image_id}_gtFine_leftImg8bit.png"
        return CocoPart(
            {"id": image_id, "width": width, "height": height, "file_name": name},
            [{"image_id": image_id, "file_name": png.name, "segments_info": segments}],
        )

    return [
        convert_to_coco(
            {source.name.removesuffix(INSTANCES_SUFFIX): source for source in sources},
            convert,
            target=folder.with_name(f"cityscapes_panoptic_{folder.name}.json"),
            categories=categories,
            png_suffix="_gtFine_panoptic.png",
            workers=workers,
        )
        for folder, sources in _sources(root, INSTANCES_SUFFIX).items()
    ]


def _labels() -> list[Any]:
    try:
        return import_module("cityscapesscripts.helpers.labels").labels
    except ImportError as error:
        raise UserError(
            "preparing Cityscapes needs cityscapesscripts: pip install 'proscale[cityscapes]'"
        ) from error


def _sources(root: Path, suffix: str) -> dict[Path, list[Path]]:
    """Every split's folder that is there, and its files of that ending."""
    folders = [root / "cityscapes" / "gtFine" / split for split in SPLITS]
    return find_sources({folder: folder for folder in folders}, f"*/*{suffix}")
