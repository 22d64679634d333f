"""From the box of a person to the input of a top-down pose estimator, and back.

Coordinates are pixel indices: a whole number is the centre of a pixel.
"""

from collections.abc import Sequence
from math import cos, radians, sin
from typing import Self

import cv2
import numpy as np


class PersonCrop:
    """The padded box of a person, at the input's aspect ratio, as an affine map to the input.

    Args:
        box_xyxy: left, top, right, bottom in the image; used as it is, also outside of the image.
        input_size: (W, H) of the input, pixels.
        padding: factor of the box's sides.
        rotation: of the person in the input, degrees; anticlockwise in the picture.

    Attributes:
        center: ``(2,)``, x and y of the middle of the crop in the image.
        scale: ``(2,)``, width and height of the crop in the image, at the input's aspect ratio.
        matrix: ``(2, 3)``, from pixel indices in the image to those in the input.
    """

    def __init__(
        self,
        box_xyxy: Sequence[float] | np.ndarray,
        input_size: Sequence[int],
        padding: float = 1.25,
        rotation: float = 0.0,
    ):
        # float32 as published: rounding moves pixels.
        box = np.asarray(box_xyxy, np.float32)
        self._set((box[:2] + box[2:]) / 2, padding * (box[2:] - box[:2]), input_size, rotation)

    @classmethod
    def around(
        cls,
        center: np.ndarray,
        scale: np.ndarray,
        input_size: Sequence[int],
        rotation: float = 0.0,
    ) -> Self:
        """The crop around ``center``, at least ``scale`` (width, height) large."""
        crop = cls.__new__(cls)
        crop._set(center.astype(np.float32), scale, input_size, rotation)
        return crop

    def _set(
        self, center: np.ndarray, scale: np.ndarray, input_size: Sequence[int], rotation: float
    ) -> None:
        width, height = self.input_size = (input_size[0], input_size[1])
        # The shorter side grows until the crop has the input's aspect ratio.
        aspect = width / height
        self.center = center
        self.scale = np.array(
            [max(scale[0], scale[1] * aspect), max(scale[1], scale[0] / aspect)], np.float32
        )
        # p' = (W, H) / 2 + k · R · (p − centre): scaled and rotated about the middle of the crop.
        k, angle = width / float(self.scale[0]), radians(rotation)
        linear = k * np.array([[cos(angle), sin(angle)], [-sin(angle), cos(angle)]])
        offset = np.array([width, height]) / 2 - linear @ self.center
        self.matrix = np.column_stack((linear, offset))

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """``(h, w, C)`` uint8, the whole image, to the input ``(H, W, C)``; black outside."""
        # Bilinear, on the pixels as they are: normalisation comes after.
        return cv2.warpAffine(image, self.matrix, self.input_size, flags=cv2.INTER_LINEAR)

    def to_input(self, points: np.ndarray) -> np.ndarray:
        """Points ``(…, 2)`` of the image in the input."""
        return np.asarray(points) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Points ``(…, 2)`` of the input in the image, by the published way back: that of a crop
        without rotation, as in testing."""
        return np.asarray(points) / self.input_size * self.scale + self.center - self.scale / 2
