"""ADE20K's label images from 0, and its panoptic and instance annotations in COCO's formats.

Label images (``annotations``) have the classes as 1 to 150, and 0 where there is none. Instance
images (``annotations_instance``, of the Places Challenge 2017) have the class of an object in the
red channel, 1 to 100 since only things are counted, and its number in the green one, 0 elsewhere.
"""

from pathlib import Path

import numpy as np

from proscale.data.datasets.ade20k import FOLDER, SPLITS, THINGS, categories
from proscale.data.formats.image_file import VOID, open_image, read_label_image
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

# The segment id of an object is its label (1 to 150) times this plus its number; stuff has 0 there.
_INSTANCES_PER_CLASS = 1000


def prepare_semantic(root: Path, workers: int) -> list[Tally]:
    """``annotations_detectron2/{training,validation}``: classes 0 to 149, and 255 for none."""

    def shift(source: Path, target: Path) -> None:
        # 0 becomes 255, which is ignored. Signed in between: 0 - 1 has no place in 8 bits.
        write_png(target, (_read_labels(source).astype(np.int16) - 1).astype(np.uint8))

    tallies = []
    for split, sources in _sources(root).items():
        folder = root / FOLDER / "annotations_detectron2" / SPLITS[split]
        files = {folder / source.name: source for source in sources}
        tallies.append(convert_images(files, shift, folder=folder, workers=workers))
    return tallies


def prepare_panoptic(root: Path, workers: int) -> list[Tally]:
    """``ade20k_panoptic_{train,val}`` and the JSON files of the same names.

    Stuff is where the label image has it; objects are those of the instance image, and lie above
    stuff. Other pixels, thing classes without an object among them, are void.
    """
    return _prepare_coco(root, "panoptic", workers)


def prepare_instance(root: Path, workers: int) -> list[Tally]:
    """``ade20k_instance_{train,val}.json``."""
    return _prepare_coco(root, "instance", workers)


def _prepare_coco(root: Path, kind: str, workers: int) -> list[Tally]:
    is_panoptic = kind == "panoptic"

    def category_of(id_: int) -> int | None:
        # Categories count from 0, labels from 1.
        return None if id_ == VOID else id_ // _INSTANCES_PER_CLASS - 1

    def convert(image_id: str, source: Path, png: Path) -> CocoPart:
        labels = _read_labels(source).astype(np.int32) if is_panoptic else None
        ids = _instance_ids(source)
        if labels is not None:
            if ids.shape != labels.shape:
                detail = f"it has (height, width) {labels.shape}: expected {ids.shape}"
                raise DataError(f"{source}: {detail}, that of its instances")
            # Things come from the instance image alone.
            is_thing = np.isin(labels, np.array(THINGS) + 1)
            stuff = np.where(is_thing, VOID, labels * _INSTANCES_PER_CLASS)
            ids = np.where(ids != VOID, ids, stuff)
        image = {"id": image_id, "file_name": f"{image_id}.jpg"}
        return coco_part(image, ids, category_of, png if is_panoptic else None)

    return [
        convert_to_coco(
            {source.stem: source for source in sources},
            convert,
            target=root / FOLDER / f"ade20k_{kind}_{split}.json",
            categories=[c for c in categories() if is_panoptic or c["isthing"]],
            png_suffix=".png" if is_panoptic else "",
            workers=workers,
        )
        for split, sources in _sources(root).items()
    ]


def _sources(root: Path) -> dict[str, list[Path]]:
    """The label images of every split that is there."""
    labels = root / FOLDER / "annotations"
    return find_sources({split: labels / name for split, name in SPLITS.items()}, "*.png")


def _read_labels(source: Path) -> np.ndarray:
    labels = read_label_image(source)
    count = len(categories())
    if labels.max() > count:
        raise DataError(f"{source}: it has the label {labels.max()}: expected 0 to {count}")
    return labels


def _instance_ids(source: Path) -> np.ndarray:
    """Segment ids of the objects in the image that the label image ``source`` belongs to."""
    path = source.parents[2] / "annotations_instance" / source.parent.name / source.name
    if not path.is_file():
        raise MissingFileError(
            f"there is no {path}; annotations_instance is the Places Challenge's "
            "annotations_instance.tar"
        )
    with open_image(path) as image:
        category, number, _ = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0).astype(np.int32)
    # The distinct pairs of number and category: each number has one category.
    of_object = np.unique(np.stack([number, category], -1)[number > 0], axis=0)
    for index, (object_, class_) in enumerate(of_object.tolist()):
        if not 1 <= class_ <= len(THINGS):
            raise DataError(
                f"{path}: instance {object_} has category {class_}: expected 1 to {len(THINGS)}"
            )
        if index and of_object[index - 1, 0] == object_:
            raise DataError(
                f"{path}: instance {object_} has several categories, {class_} among them"
            )
    # From the challenge's category, 1 to 100, to the label, 1 to 150.
    labels = np.array([0, *THINGS]) + 1
    return np.where(number > 0, labels[category] * _INSTANCES_PER_CLASS + number, VOID)
