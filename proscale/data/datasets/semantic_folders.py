"""Semantic data sets that are two folders: images, and label images of the same names.

The label image of ``images/a/b.jpg`` is ``masks/a/b.png``. Data sets that put more into their names
(``b_leftImg8bit.png``, ``b_gtFine_labelIds.png``) say which endings to leave out.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from detectron2.utils.colormap import colormap
from tqdm import tqdm

from proscale.data.formats.label_image import read_label_image
from proscale.errors import DataError

IGNORE_LABEL = 255
"""Label of pixels that belong to no class."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Endings that tell images from other files, in lower or upper case."""

MASK_SUFFIX = ".png"

logger = logging.getLogger(__name__)


def semantic_metadata(
    class_names: Sequence[str],
    *,
    image_root: str | Path,
    mask_root: str | Path,
    image_suffix: str | None = None,
    mask_suffix: str = MASK_SUFFIX,
    colors: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """Detectron2's metadata of a semantic data set.

    Args:
        class_names: of the labels 0, 1, …
        image_root: folder of the images, sub-folders included.
        mask_root: folder of the label images, with the same sub-folders.
        image_suffix: ending of the images' names; None takes all of ``IMAGE_SUFFIXES``.
        mask_suffix: what stands in its place in the label images' names.
        colors: RGB of the classes; where there are too few, colours are chosen.
    """
    chosen = colormap(rgb=True)
    return {
        "image_root": str(image_root),
        "sem_seg_root": str(mask_root),
        "image_suffix": image_suffix,
        "mask_suffix": mask_suffix,
        "stuff_classes": list(class_names),
        "stuff_colors": [
            list(colors[i]) if i < len(colors) else chosen[i % len(chosen)].astype(int).tolist()
            for i in range(len(class_names))
        ],
        "ignore_label": IGNORE_LABEL,
        "evaluator_type": "sem_seg",
    }


def load_semantic_folders(metadata: Mapping[str, Any]) -> list[dict[str, str]]:
    """The entries of a data set, ordered by name, in Detectron2's format for semantic data.

    Args:
        metadata: as from ``semantic_metadata``.

    Returns:
        for every image ``file_name`` and ``sem_seg_file_name``.

    Raises:
        DataError: there are no images.
        FileNotFoundError: images have no label image.
    """
    pairs = pair_files(metadata)
    if not pairs:
        raise DataError(f"{metadata['image_root']}: no images ({_described_suffix(metadata)})")
    without = [pair for pair in pairs if not pair[1].is_file()]
    if without:
        image, mask = without[0]
        raise FileNotFoundError(
            f"{len(without)} of {len(pairs)} images have no label image, the first being {image}: "
            f"there is no {mask}"
        )
    return [{"file_name": str(i), "sem_seg_file_name": str(m)} for i, m in pairs]


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
        ValueError: no label is in any of them.
    """
    with ThreadPoolExecutor() as pool:
        found = pool.map(_highest_label, masks)
        progress = tqdm(found, "counting classes", len(masks), leave=False, disable=None)
        highest = max(progress, default=-1)
    if highest < 0:
        raise ValueError(
            f"there are no labels in {len(masks)} label images"
            + (f" ({masks[0]}, …)" if masks else "")
            + f"; classes are the labels found, {IGNORE_LABEL} means unlabelled"
        )
    return highest + 1


def _highest_label(mask: Path) -> int:
    try:
        labels = read_label_image(mask)
    except ValueError as error:
        logger.warning("Left out of counting classes: %s", error)
        return -1
    labels = labels[labels != IGNORE_LABEL]
    return int(labels.max()) if labels.size else -1


def _image_suffix(file: Path, wanted: str | None) -> str:
    """The part of an image's name that is left out; empty if the file is not wanted."""
    if wanted is not None:
        return wanted if file.name.endswith(wanted) else ""
    return file.suffix if file.suffix.lower() in IMAGE_SUFFIXES else ""


def _described_suffix(metadata: Mapping[str, Any]) -> str:
    return "*" + (metadata["image_suffix"] or ", *".join(IMAGE_SUFFIXES))
