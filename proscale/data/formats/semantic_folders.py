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

from proscale.data.formats.label_image import read_label_image
from proscale.data.formats.problems import Problem, Reporter, raise_first
from proscale.errors import DataError

IGNORE_LABEL = 255
"""Label of pixels that belong to no class."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Endings that tell images from other files, in lower or upper case."""

MASK_SUFFIX = ".png"

logger = logging.getLogger(__name__)


def semantic_entries(
    metadata: Mapping[str, Any], report: Reporter = raise_first
) -> list[dict[str, Any]]:
    """The entries of a data set, ordered by name, in Detectron2's format for semantic data.

    Args:
        metadata: as from ``semantic_metadata``.
        report: takes problems: there are no images, or images have no label image.

    Returns:
        for every image ``file_name`` and, if the label image is there, ``sem_seg_file_name``.
    """
    root = metadata["image_root"]
    pairs = pair_files(metadata)
    if not pairs:
        suffixes = metadata["image_suffix"] or ", *".join(IMAGE_SUFFIXES)
        report(Problem("image-missing", root, f"there are no images (*{suffixes})"))
    entries, without = [], []
    for image, mask in pairs:
        entries.append({"file_name": str(image)})
        if mask.is_file():
            entries[-1]["sem_seg_file_name"] = str(mask)
        else:
            without.append(f"{image}: there is no {mask}")
    if without:
        count = f"{len(without)} of {len(pairs)} images have no label image, the first being"
        report(Problem("mask-missing", root, f"{count} {without[0]}"))
    return entries


def load_semantic_folders(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of a data set, read strictly, see ``semantic_entries``.

    Raises:
        DataError: there are no images, or images have no label image.
    """
    return semantic_entries(metadata)


def pair_files(metadata: Mapping[str, Any]) -> list[tuple[Path, Path]]:
    """Every image and where its label image belongs, whether it is there or not."""
    image_root, mask_root = Path(metadata["image_root"]), Path(metadata["sem_seg_root"])
    pairs = []
    for image in sorted(image_root.rglob("*")):
        suffix = _image_suffix(image, metadata["image_suffix"])
        if suffix:
            relative = image.relative_to(image_root)
            name = relative.name.removesuffix(suffix) + metadata["mask_suffix"]
            pairs.append((image, mask_root / relative.with_name(name)))
    return pairs


def mask_files(metadata: Mapping[str, Any]) -> list[Path]:
    """All label images that are there, with an image or not."""
    return sorted(Path(metadata["sem_seg_root"]).rglob("*" + metadata["mask_suffix"]))


def count_labels(masks: Sequence[Path]) -> int:
    """Read label images for the number of their classes: the highest label plus one.

    ``IGNORE_LABEL`` is none. An unreadable image is left out with a warning.

    Raises:
        DataError: no label is in any of them.
    """
    with ThreadPoolExecutor() as pool:
        found = pool.map(_highest_label, masks)
        progress = tqdm(found, "counting classes", len(masks), leave=False, disable=None)
        highest = max(progress, default=-1)
    if highest < 0:
        raise DataError(
            f"there are no labels in {len(masks)} label images"
            + (f" ({masks[0]}, …)" if masks else "")
            + f"; classes are the labels found, {IGNORE_LABEL} means unlabelled"
        )
    return highest + 1


def _highest_label(mask: Path) -> int:
    try:
        labels = read_label_image(mask)
    except DataError as error:
        logger.warning("Skipped when counting classes: %s", error)
        return -1
    labels = labels[labels != IGNORE_LABEL]
    return int(labels.max()) if labels.size else -1


def _image_suffix(file: Path, wanted: str | None) -> str:
    """The part of an image's name that is left out; empty if the file is not wanted."""
    if wanted is not None:
        return wanted if file.name.endswith(wanted) else ""
    return file.suffix if file.suffix.lower() in IMAGE_SUFFIXES else ""
