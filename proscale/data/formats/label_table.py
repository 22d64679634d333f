"""Values of label images that are not the class ids themselves: other numbers, or colours."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Self

import numpy as np

from proscale.data.formats.image_file import read_image, read_label_image, relabel, rgb_to_id
from proscale.data.formats.problems import first_few

IGNORE_LABEL = 255
"""Label of pixels that belong to no class."""

MAX_CLASSES = IGNORE_LABEL
"""Of a data set with a table: ids are below ``IGNORE_LABEL``."""


@dataclass(frozen=True)
class LabelTable:
    """The class of every value that label images have.

    Attributes:
        classes: by value the class id, 0 to ``MAX_CLASSES`` - 1, or ``IGNORE_LABEL``.
        in_color: values are colours, coded as by ``rgb_to_id``; else numbers.
    """

    classes: Mapping[int, int]
    in_color: bool = False

    @classmethod
    def without(cls, ignored: Collection[int], num_classes: int) -> Self:
        """The numbers 0, 1, … are the classes, those that are ``ignored`` left out."""
        numbers = islice((n for n in count() if n not in ignored), num_classes)
        classes = {number: class_ for class_, number in enumerate(numbers)}
        return cls(classes | dict.fromkeys(ignored, IGNORE_LABEL))

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """The values (H, W) of a label image; a DataError if it cannot be read."""
        return rgb_to_id(read_image(path, "RGB")) if self.in_color else read_label_image(path)

    def class_ids(self, values: np.ndarray) -> np.ndarray:
        """Values (H, W) → class ids (H, W) int32, -1 where the table has none."""
        unknown = dict.fromkeys(np.unique(values).tolist(), -1)
        return relabel(values, unknown | dict(self.classes), np.int32)

    def shown(self, value: int) -> str:
        """A value, as messages have it."""
        return f"colour {_rgb(value)}" if self.in_color else f"label {value}"

    @property
    def accepted(self) -> str:
        """The values of the table, as messages have them."""
        values = map(_rgb, self.classes) if self.in_color else self.classes
        return first_few(values, 20)


def _rgb(value: int) -> list[int]:
    return [value & 255, value >> 8 & 255, value >> 16]
