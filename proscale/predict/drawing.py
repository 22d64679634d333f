"""Predictions as pictures."""

from dataclasses import dataclass

import numpy as np
import pycocotools.mask

from proscale.predict.classes import Classes, Color
from proscale.predict.result import Prediction, Segment
from proscale.predict.visualization import draw_segments, indices_of, segment_colors


@dataclass(frozen=True)
class Drawing:
    """What there is to draw of a prediction.

    Attributes:
        index_map: ``(H, W)`` integers: n where the n-th segment, from 1, is to be seen. Of
            instances that overlap it is the one with the best score.
        colors: of the segments.
        captions: of the segments, with scores where objects have them.
    """

    index_map: np.ndarray
    colors: list[Color]
    captions: list[str]

    @classmethod
    def of(cls, prediction: Prediction, classes: Classes) -> "Drawing":
        """The drawing of a prediction with the data set's colours."""
        segments = prediction.segments
        return cls(
            _index_map(prediction),
            segment_colors(classes, [segment.class_id for segment in segments]),
            [_caption(segment) for segment in segments],
        )

    def over(self, image: np.ndarray) -> np.ndarray:
        """Over the image, ``(H, W, 3)`` uint8 RGB."""
        return draw_segments(image, self.index_map, self.colors, self.captions)


def _index_map(prediction: Prediction) -> np.ndarray:
    if prediction.id_map is not None:
        return indices_of(prediction.id_map, [segment.id for segment in prediction.segments])
    index_map = np.zeros((prediction.height, prediction.width), np.int64)
    for number in range(len(prediction.segments), 0, -1):
        index_map[pycocotools.mask.decode(prediction.codes[number - 1]) > 0] = number
    return index_map


def _caption(segment: Segment) -> str:
    if segment.score is None or not segment.isthing:
        return segment.name
    return f"{segment.name} {segment.score:.0%}"
