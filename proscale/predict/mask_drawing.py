"""Segments drawn over their image.

An index map is an integer image in which the pixels of the n-th segment, counted from 1, are n, and
0 where there is none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pycocotools.mask

from proscale.predict.drawing import Drawing, caption, object_colors
from proscale.predict.result import ClassMetadata, Segmentation
from proscale.utils.types import Size

# Of a segment's colour over the image.
OPACITY = 0.5


@dataclass(frozen=True)
class MaskDrawing(Drawing):
    """Segments in transparent colours, with opaque outlines.

    Of overlapping instances ``index_map`` has the one with the best score. Captions have the scores
    of objects.
    """

    index_map: np.ndarray

    @classmethod
    def of(cls, prediction: Segmentation, classes: ClassMetadata) -> "MaskDrawing":
        """The drawing of a prediction with the data set's colours."""
        segments = prediction.segments
        if prediction.id_map is not None:
            index_map = indices_of(prediction.id_map, [segment.id for segment in segments])
        else:
            index_map = np.zeros((prediction.height, prediction.width), np.int64)
            # Instances have falling scores: the best one is painted last.
            for number in range(len(segments), 0, -1):
                index_map[pycocotools.mask.decode(prediction.codes[number - 1]) > 0] = number
        captions = [caption(s) if s.isthing else s.name for s in segments]
        return cls(object_colors(classes, [s.class_id for s in segments]), captions, index_map)

    @property
    def size(self) -> Size:
        """See :class:`Drawing`."""
        return self.index_map.shape[0], self.index_map.shape[1]

    def resized(self, size: Size) -> "MaskDrawing":
        """See :class:`Drawing`."""
        # The nearest neighbours; OpenCV has none for maps of 64 bits.
        rows, columns = (
            np.arange(new) * old // new for new, old in zip(size, self.size, strict=True)
        )
        return MaskDrawing(self.colors, self.captions, self.index_map[rows[:, None], columns])

    def layers(self) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Drawing`."""
        paint = np.array([(0, 0, 0), *self.colors], np.uint8)[self.index_map]
        fill = np.where(self.index_map > 0, round(255 * OPACITY), 0).astype(np.uint8)
        lines = np.where(outlines(self.index_map), 255, 0).astype(np.uint8)
        return np.dstack([paint, fill]), np.dstack([paint, lines])

    def label_places(self) -> dict[int, tuple[int, int]]:
        """See :class:`Drawing`; the pixels deepest inside, of the largest segments first."""
        return deepest_places(self.index_map)

    def areas(self) -> dict[int, int]:
        """See :class:`Drawing`."""
        return dict(enumerate(np.bincount(self.index_map.ravel()).tolist()))


def indices_of(id_map: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """The index map of segments that have these ids in a map of any integers; others become 0."""
    # A table over the ids that occur replaces all pixels in one pass.
    known, places = np.unique(id_map, return_inverse=True)
    index = {id_: number for number, id_ in enumerate(ids, 1)}
    lookup = np.array([index.get(id_, 0) for id_ in known.tolist()], np.int64)
    return lookup[places].reshape(id_map.shape)


def outlines(index_map: np.ndarray) -> np.ndarray:
    """``(H, W)`` bool: pixels of segments along their borders, a line of some 1/300 of the size."""
    # Pixels whose four neighbours do not all have their index: where the gradient is not 0.
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    gradient = cv2.morphologyEx(index_map.astype(np.uint16), cv2.MORPH_GRADIENT, cross)
    width = max(2, round(min(index_map.shape) / 300))
    thick = cv2.dilate((gradient > 0).astype(np.uint8), np.ones((width, width), np.uint8))
    return (thick > 0) & (index_map > 0)


def deepest_places(index_map: np.ndarray) -> dict[int, tuple[int, int]]:
    """(x, y) of the pixel deepest inside each segment, by its index.

    The largest segments come first; those below a thousandth of the image have no place.
    """
    # Distances are measured on a map of at most 400 pixels: some do not matter to a label.
    step = max(1, math.ceil(max(index_map.shape) / 400))
    reduced = index_map[::step, ::step]
    areas = np.bincount(reduced.ravel())
    # Index 0 is no segment.
    areas[0] = 0
    places = {}
    for index in np.argsort(-areas, kind="stable").tolist():
        if areas[index] < max(0.001 * reduced.size, 1):
            break
        # The padding makes the image's border a border of the segment.
        mask = np.pad((reduced == index).astype(np.uint8), 1)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        places[index] = (int(x) * step, int(y) * step)
    return places
