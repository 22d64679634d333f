"""Semantic data sets that are two folders: images, and label images of the same names.

The label image of ``images/a/b.jpg`` is ``masks/a/b.png``. Data sets that put more into their names
(``b_leftImg8bit.png``, ``b_gtFine_labelIds.png``) say which endings to leave out.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from proscale.data.formats.image_file import read_label_image
from proscale.data.formats.problems import Problem, Reporter, raise_first
from proscale.errors import DataError

# Label of pixels that belong to no class.
IGNORE_LABEL = 255
# Endings of image files, in lower or upper case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIX = ".png"

logger = logging.getLogger(__name__)


def load_semantic_folders(
    metadata: Mapping[str, Any], report: Reporter = raise_first
) -> list[dict[str, Any]]:
    """The entries of a data set, ordered by name, in Detectron2's format for semantic data.

    Returns:
        for every image ``file_name`` and, if the label image is there, ``sem_seg_file_name``.
    """
    image_root, mask_root = Path(metadata["image_root"]), Path(metadata["sem_seg_root"])
    wanted = metadata["image_suffix"]
    entries, without = [], []
    # Sorted: the order of a folder differs between file systems.
    for image in sorted(image_root.rglob("*")):
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


def count_labels(masks: Sequence[Path]) -> int:
    """Read label images for the number of their classes: the highest label plus one.

    ``IGNORE_LABEL`` is none. An unreadable image is skipped with a warning.

    Raises:
        DataError: no label is in any of them.
    """

    def highest_label(mask: Path) -> int:
        try:
            labels = read_label_image(mask)
        except DataError as error:
            logger.warning("Skipped when counting classes: %s", error)
            return -1
        labels = labels[labels != IGNORE_LABEL]
        return int(labels.max()) if labels.size else -1

    # Threads: decoding releases Python's lock.
    with ThreadPoolExecutor() as pool:
        found = pool.map(highest_label, masks)
        progress = tqdm(found, "counting classes", len(masks), leave=False, disable=None)
        highest = max(progress, default=-1)
    if highest < 0:
        raise DataError(
            f"there are no labels in {len(masks)} label images"
            + (f" ({masks[0]}, …)" if masks else "")
            + f"; classes are the labels found, {IGNORE_LABEL} means unlabelled"
        )
    return highest + 1
