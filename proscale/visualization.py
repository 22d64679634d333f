"""Pictures of panoptic segmentations, for people to look at."""

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.visualizer import ColorMode, Visualizer
from torch import Tensor


def draw_panoptic(
    image: np.ndarray,
    panoptic: Tensor,
    segments: list[dict],
    metadata: Metadata,
    *,
    scale: float = 1.0,
) -> np.ndarray:
    """Draw segments with their names over an image.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        panoptic: ``(H, W)`` integer segment ids, 0 where there is none.
        segments: of each, ``id``, ``isthing`` and ``category_id`` (contiguous).
        metadata: of the data set; gives names and colours.
        scale: size of the picture over that of the image.

    Returns:
        ``(H·scale, W·scale, 3)`` uint8 RGB.
    """
    mode = ColorMode.SEGMENTATION if hasattr(metadata, "thing_colors") else ColorMode.IMAGE
    drawing = Visualizer(image, metadata, scale=scale, instance_mode=mode)
    return drawing.draw_panoptic_seg(panoptic, segments, alpha=0.6).get_image()


def side_by_side(pictures: list[np.ndarray], *, gap: int = 8) -> np.ndarray:
    """Put pictures of equal height next to each other, ``gap`` white pixels apart."""
    height = pictures[0].shape[0]
    space = np.full((height, gap, 3), 255, dtype=np.uint8)
    row = [part for picture in pictures for part in (space, picture)][1:]
    return np.concatenate(row, axis=1)
