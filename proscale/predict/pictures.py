"""Predictions and annotations as pictures."""

import numpy as np
from detectron2.data import Metadata
from torch import Tensor

from proscale.predict.box_drawing import BoxDrawing, PoseDrawing
from proscale.predict.drawing import Drawing, enlarge
from proscale.predict.mask_drawing import MaskDrawing
from proscale.predict.result import ClassMetadata, Poses, Prediction, Segmentation, from_annotation


def drawing_of(prediction: Prediction, classes: ClassMetadata) -> Drawing:
    """The drawing of a prediction with the data set's colours."""
    if isinstance(prediction, Segmentation):
        return MaskDrawing.of(prediction, classes)
    if isinstance(prediction, Poses):
        return PoseDrawing.of(prediction, classes)
    return BoxDrawing.of(prediction, classes)


def draw_panoptic(
    image: np.ndarray, panoptic: Tensor, segments: list[dict], metadata: Metadata, *, scale: int = 1
) -> np.ndarray:
    """Draw panoptic segments, of a model or an annotation, with their names over an image.

    Args:
        image: ``(H, W, 3)`` uint8 RGB; the result is ``scale`` times as large.
        panoptic: ``(H, W)`` integer segment ids, 0 where there is none.
        segments: of each, ``id`` and ``category_id`` (contiguous).
        metadata: of the data set; gives names and colours.
    """
    classes = ClassMetadata.of_metadata(metadata, "panoptic")
    class_of = {segment["id"]: segment["category_id"] for segment in segments}
    ids = enlarge(panoptic.cpu().numpy(), scale)
    prediction = from_annotation("panoptic", ids, class_of, classes)
    return MaskDrawing.of(prediction, classes).over(enlarge(image, scale))
