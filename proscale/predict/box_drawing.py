"""Boxes and skeletons drawn over their image."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from PIL import Image, ImageDraw

from proscale.data.datasets.registration import LEFT_COLOR, MIDDLE_COLOR, RIGHT_COLOR
from proscale.predict.drawing import Drawing, caption, object_colors
from proscale.predict.result import ClassMetadata, Color, Poses, Prediction
from proscale.predict.skeleton import LEFT, MIDDLE, RIGHT, Skeleton
from proscale.utils.types import Size

# Keypoints that score less are not drawn, nor are their links.
KEYPOINT_THRESHOLD = 0.3
SIDE_COLORS: dict[str, Color] = {LEFT: LEFT_COLOR, RIGHT: RIGHT_COLOR, MIDDLE: MIDDLE_COLOR}
"""Of keypoints and links on the left and on the right of a person, and in the middle."""

# Of a box's colour over the image, and of a person's box, which is context for the pose.
_OPACITY, _CONTEXT = 0.12, 0.6
# Lines are drawn so many times as large and reduced, which makes them smooth.
_SMOOTH = 2


@dataclass(frozen=True)
class BoxDrawing(Drawing):
    """Frames around objects, and a faint tint inside of them.

    ``boxes`` are ``(N, 4)``, (x0, y0, x1, y1) in pixels, of an image of ``image_size``.
    """

    image_size: Size
    boxes: np.ndarray

    @classmethod
    def of(cls, prediction: Prediction, classes: ClassMetadata) -> "BoxDrawing":
        """The drawing of a prediction with the data set's colours."""
        return cls(*_marks(prediction, classes))

    @property
    def size(self) -> Size:
        """See :class:`Drawing`."""
        return self.image_size

    def resized(self, size: Size) -> Self:
        """See :class:`Drawing`."""
        return replace(self, image_size=size, boxes=self.boxes * np.tile(_scale(self, size), 2))

    def layers(self) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Drawing`."""
        height, width = self.size
        fill = np.zeros((height, width, 4), np.uint8)
        # Small boxes lie on large ones.
        areas = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1)
        corners = np.clip(np.rint(self.boxes), 0, [width, height, width, height]).astype(int)
        for index in np.argsort(-areas, kind="stable"):
            x0, y0, x1, y1 = corners[index]
            fill[y0:y1, x0:x1] = (*self.colors[index], round(255 * _OPACITY))
        return fill, self.frames(1.0)

    def frames(self, opacity: float) -> np.ndarray:
        """The boxes' outlines, ``(H, W, 4)`` uint8 RGBA; the first boxes lie on the others."""
        canvas, draw = _canvas(self.size)
        for box, color in reversed(list(zip(self.boxes, self.colors, strict=True))):
            edges = _SMOOTH * box
            draw.rectangle(
                (*edges[:2], *np.maximum(edges[2:] - 1, edges[:2])),
                outline=(*color, round(255 * opacity)),
                width=_line_width(self.size),
            )
        return _reduced(canvas)

    def label_places(self) -> dict[int, tuple[int, int]]:
        """See :class:`Drawing`; the middles of the upper edges, of the best objects first."""
        return {
            number: (round((x0 + x1) / 2), round(y0))
            for number, (x0, y0, x1, _) in enumerate(self.boxes.tolist(), 1)
        }


@dataclass(frozen=True)
class PoseDrawing(BoxDrawing):
    """Skeletons in the colours of their sides, and the boxes of the persons.

    ``keypoints`` are ``(N, K, 3)``: x, y (COCO's, see :class:`~proscale.predict.result.Pose`) and
    score.
    """

    skeleton: Skeleton
    keypoints: np.ndarray

    @classmethod
    def of(cls, prediction: Prediction, classes: ClassMetadata) -> "PoseDrawing":
        """The drawing of a prediction with the data set's colours."""
        assert isinstance(prediction, Poses) and classes.skeleton is not None
        marks = _marks(prediction, classes)
        return cls(*marks, skeleton=classes.skeleton, keypoints=prediction.keypoints)

    def resized(self, size: Size) -> Self:
        """See :class:`Drawing`."""
        resized = super().resized(size)
        # Pixel centres: half a pixel remains half a pixel.
        points = (self.keypoints[..., :2] + 0.5) * _scale(self, size) - 0.5
        keypoints = np.concatenate([points, self.keypoints[..., 2:]], axis=-1)
        return replace(resized, keypoints=keypoints)

    def layers(self) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Drawing`; the skeletons are the fill."""
        canvas, draw = _canvas(self.size)
        width = _line_width(self.size)
        # The best person is drawn last; keypoints lie on the links.
        for pose in self.keypoints[::-1]:
            points = _SMOOTH * (pose[:, :2] + 0.5)
            is_shown = pose[:, 2] >= KEYPOINT_THRESHOLD
            for link in self.skeleton.links:
                if is_shown[list(link)].all():
                    color = SIDE_COLORS[self.skeleton.link_side(link)]
                    draw.line(
                        [tuple(points[end]) for end in link], (*color, 255), round(1.3 * width)
                    )
            for index in np.flatnonzero(is_shown).tolist():
                color = SIDE_COLORS[self.skeleton.sides[index]]
                draw.circle(tuple(points[index]), width, (*color, 255), (255, 255, 255, 255))
        return _reduced(canvas), self.frames(_CONTEXT)


def _marks(
    prediction: Prediction, classes: ClassMetadata
) -> tuple[list[Color], list[str], Size, np.ndarray]:
    colors = object_colors(classes, [one.class_id for one in prediction.objects])
    captions = [caption(one) for one in prediction.objects]
    return colors, captions, (prediction.height, prediction.width), prediction.boxes


def _scale(drawing: Drawing, size: Size) -> np.ndarray:
    """Of x and y, from the drawing to ``size``."""
    return np.array([size[1] / drawing.size[1], size[0] / drawing.size[0]])


def _line_width(size: Size) -> int:
    return _SMOOTH * max(2, round(min(size) / 220))


def _canvas(size: Size) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGBA", (_SMOOTH * size[1], _SMOOTH * size[0]))
    return canvas, ImageDraw.Draw(canvas)


def _reduced(canvas: Image.Image) -> np.ndarray:
    return np.asarray(canvas.reduce(_SMOOTH))
