"""Problems of data sets by name, and the two ways to read: strict and lenient.

Every reader of a data set's files is given a function that takes :class:`Problem`s. Training and
evaluation are strict: :func:`raise_first` ends reading at the first error. ``proscale
check-dataset`` is lenient: ``list.append`` collects them all.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from proscale.errors import DataError, MissingFileError

ERRORS = {
    "annotation-file": "the annotation file cannot be read as the format it should have",
    "image-repeated": "the annotation file has an image, or its annotation, twice",
    "annotation-without-image": "an annotation is for an image that is not listed",
    "path-outside": "a file name leads out of the folder of its files",
    "image-missing": "there is no such image file",
    "image-unreadable": "the image file cannot be decoded to its end",
    "image-size": "the image has another size than stated, as training reads it",
    "mask-missing": "there is no such mask file",
    "mask-unreadable": "the mask file cannot be decoded, or has the wrong kind of pixels",
    "mask-size": "the mask has another size than the image",
    "segment-repeated": "a segment's id is there twice",
    "segment-without-pixels": "a segment is listed, but has no pixels",
    "pixels-without-segment": "pixels have the id of no listed segment",
    "segment-unreadable": "an instance's polygons or run lengths are unusable",
    "box-unreadable": "an object has no box of four numbers",
    "box-empty": "a box has no width or no height",
    "keypoints-unreadable": "a person has not three numbers for each keypoint",
    "unknown-category": "a segment has a category that is not known",
    "area-not-positive": "a segment's stated area is not above 0",
    "label-out-of-range": "pixels have the label of no class",
    "leaked-image": "the same picture is in two data sets",
}

WARNINGS = {
    "image-not-annotated": "images are listed, or in the folder, but have no annotation",
    "mask-unused": "mask files that belong to no image",
    "image-depth": "the image has 16 bits a channel; it is read with 8",
    "exif-rotation": "the image is turned when it is read; its mask has to be so already",
    "image-greyscale": "the image is grey; it is read with three equal channels",
    "image-cmyk": "the image has printing colours; its conversion to RGB may look odd",
    "image-alpha": "the image is partly transparent; transparency is ignored",
    "image-empty": "nothing in the image is annotated, or only crowds",
    "box-outside": "a segment's stated box is not inside its image",
    "keypoint-outside": "a labelled keypoint is not inside its image",
    "keypoint-count-differs": "num_keypoints is not the number of labelled keypoints",
    "area-missing": "persons have no area: keypoint AP cannot be computed",
    "area-differs": "a segment's stated area is not its number of pixels",
    "image-duplicate": "the same picture is there more than once",
    "name-in-both": "two data sets have images of the same file name",
    "id-in-both": "two data sets have images of the same id",
    "pixels-of-one-class": "one class has nearly all labelled pixels",
    "pixels-ignored": "nearly all pixels have no class, by the label that is ignored",
    "class-absent": "a class does not occur",
}


@dataclass(frozen=True)
class Problem:
    """One problem of the ``file`` of a data set; ``detail`` names the ``segment`` if it is of one.

    ``kind`` is a key of ``ERRORS``, which spoil training or its results, or of ``WARNINGS``, which
    may.
    """

    kind: str
    file: str
    detail: str
    segment: int | str | None = None

    @property
    def is_error(self) -> bool:
        return self.kind in ERRORS

    def __str__(self) -> str:
        return f"{self.file}: {self.detail}"


# Takes the problems that a reader finds. Where it returns, the reader goes on without the part.
Reporter = Callable[[Problem], None]

_logger = logging.getLogger(__name__)


def raise_first(problem: Problem) -> None:
    """Read strictly: log warnings.

    Raises:
        DataError: the problem is an error. MissingFileError if a file is not there.
    """
    # Missing files have their own class: registration adds how to make them.
    if problem.kind in ("image-missing", "mask-missing"):
        raise MissingFileError(str(problem))
    if problem.is_error:
        raise DataError(str(problem))
    _logger.warning("%s", problem)


def first_few(items: Iterable[object], most: int = 5) -> str:
    """``items`` as a text, shortened."""
    items = list(items)
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
