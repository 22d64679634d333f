"""Semantic data sets that are two folders: images, and label images of the same names.

The label image of ``images/a/b.jpg`` is ``masks/a/b.png``. Data sets that put more into their names
(``b_leftImg8bit.png``, ``b_gtFine_labelIds.png``) say which endings to leave out, or have them
found (:func:`find_suffixes`).
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from proscale.data.formats.image_file import read_label_image
from proscale.data.formats.label_table import IGNORE_LABEL
from proscale.data.formats.problems import Problem, Reporter, first_few, raise_first
from proscale.errors import DataError

# Endings of image files, in lower or upper case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIX = ".png"

BLACK_AND_WHITE = (
    "label images have 0 and 255 alone, and 255 means unlabelled: one class is left, from which "
    "nothing is learned; `LABELS: {background: 0, object: 255}` in DATASETS.OWN makes them two"
)

logger = logging.getLogger(__name__)


def load_semantic_folders(
    metadata: Mapping[str, Any], report: Reporter = raise_first
) -> list[dict[str, Any]]:
    """The entries of a data set, ordered by name, in Detectron2's format for semantic data.

    Returns:
        for every image ``file_name`` and, if the label image is there, ``sem_seg_file_name`` and
        the ``label_table`` of the metadata, if they have one.
    """
    image_root, mask_root = Path(metadata["image_root"]), Path(metadata["sem_seg_root"])
    wanted = metadata["image_suffix"]
    entries, without = [], []
    # Sorted: the order of a folder differs between file systems.
    is_one_folder = image_root == mask_root
    for image in sorted(image_root.rglob("*")):
        if is_one_folder and image.name.endswith(metadata["mask_suffix"]):
            continue
        if wanted is not None and image.name.endswith(wanted):
            suffix = wanted
        elif wanted is None and image.suffix.lower() in IMAGE_SUFFIXES:
            suffix = image.suffix
        else:
            continue
        name = image.name.removesuffix(suffix) + metadata["mask_suffix"]
        mask = mask_root / image.relative_to(image_root).with_name(name)
        entries.append({"file_name": str(image)})
        if mask.is_file():
            entries[-1]["sem_seg_file_name"] = str(mask)
            if "label_table" in metadata:
                entries[-1]["label_table"] = metadata["label_table"]
        else:
            without.append(f"{image}: there is no {mask}")
    if not entries:
        suffixes = wanted or ", *".join(IMAGE_SUFFIXES)
        report(Problem("image-missing", str(image_root), f"there are no images (*{suffixes})"))
    if without:
        count = f"{len(without)} of {len(entries)} images have no label image, the first being"
        report(Problem("mask-missing", str(image_root), f"{count} {without[0]}"))
    return entries


def mask_files(metadata: Mapping[str, Any]) -> list[Path]:
    """All label images that are there, with an image or not."""
    return sorted(Path(metadata["sem_seg_root"]).rglob("*" + metadata["mask_suffix"]))


def find_suffixes(
    folders: Iterable[tuple[Path, Path]], image_suffix: str | None = None
) -> tuple[str | None, str]:
    """The endings of names, as of ``semantic_metadata``, that pair the most images with a mask.

    ``a.jpg`` belongs to ``a.png`` if there is one, else to ``a_mask.png``, ``a.tif``, …; where that
    pairs none, ``a_image.jpg`` to ``a_mask.png``. ``image_suffix`` is that of the images, if known.

    Args:
        folders: of the images and the masks of every split.

    Raises:
        DataError: several endings pair as many images.
    """
    images: list[tuple[Path, Path]] = []
    masks: list[tuple[Path, Path]] = []
    for image_root, mask_root in folders:
        images += ((mask_root, file.relative_to(image_root)) for file in _image_files(image_root))
        masks += ((mask_root, file.relative_to(mask_root)) for file in _image_files(mask_root))
    shared = image_suffix or _shared_ending([image.name for _, image in images])
    for ending in [image_suffix] if image_suffix else [None, shared]:
        # What is left of the images' names, by folder.
        stems = {
            (root, image.parent, image.name.removesuffix(ending or image.suffix)): image.name
            for root, image in images
            if image.name.endswith(ending or "")
        }
        pairs: Counter[str] = Counter()
        for root, mask in masks:
            for mark in re.finditer(r"[._-]", mask.name):
                image_name = stems.get((root, mask.parent, mask.name[: mark.start()]))
                # In one folder with the masks an image is not its own.
                if image_name is not None and image_name != mask.name:
                    pairs[mask.name[mark.start() :]] += 1
        best = [suffix for suffix, number in pairs.items() if number == max(pairs.values())]
        if MASK_SUFFIX in best or len(best) == 1:
            return ending, MASK_SUFFIX if MASK_SUFFIX in best else best[0]
        if best:
            raise DataError(f"names of label images end with {' or '.join(sorted(best))}")
    return image_suffix, MASK_SUFFIX


def _image_files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES]


def _shared_ending(names: Sequence[str]) -> str | None:
    """What all names end with, from a mark on: ``_image.jpg``; None if it is no more than a
    suffix."""
    first = min(names, key=len, default="")
    endings = (first[mark.start() :] for mark in re.finditer("[_-]", first))
    return next((end for end in endings if all(name.endswith(end) for name in names)), None)


def count_labels(masks: Sequence[Path], ignored: Collection[int] = (IGNORE_LABEL,)) -> int:
    """Read label images for the number of their labels: the highest plus one.

    Those ``ignored`` are none. An unreadable image is skipped with a warning.

    Raises:
        DataError: no label is in any of them.
    """

    def labels_in(mask: Path) -> set[int]:
        try:
            return set(np.unique(read_label_image(mask)).tolist())
        except DataError as error:
            logger.warning("Skipped when counting classes: %s", error)
            return set()

    # Threads: decoding releases Python's lock.
    with ThreadPoolExecutor() as pool:
        found = pool.map(labels_in, masks)
        progress = tqdm(found, "counting classes", len(masks), leave=False, disable=None)
        labels = set().union(*progress)
    if labels == {0, 255} and IGNORE_LABEL in ignored:
        logger.warning("%s", BLACK_AND_WHITE)
    highest = max(labels - set(ignored), default=-1)
    if highest < 0:
        raise DataError(
            f"there are no labels in {len(masks)} label images"
            + (f" ({masks[0]}, …)" if masks else "")
            + f"; classes are the labels found, {first_few(ignored)} means unlabelled"
        )
    return highest + 1
