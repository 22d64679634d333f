"""Boundaries of masks, for Boundary IoU (Cheng et al., Boundary IoU: Improving Object-Centric Image
Segmentation Evaluation, CVPR 2021, §4).

Mask IoU hardly notices a sloppy outline of a large object. Boundary IoU compares only the pixels of
each mask within a small distance of its own outline.
"""

import cv2
import numpy as np

DILATION_RATIO = 0.02
"""The distance, as a share of the image's diagonal."""


def boundary_width(height: int, width: int) -> int:
    """The distance in pixels, at least 1, in an image of this size."""
    return max(1, round(DILATION_RATIO * float(np.hypot(height, width))))


def inner_boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask within `boundary_width` of its outline (chessboard distance).

    The image's border is outline, too.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool.
    """
    boundary = mask.copy()
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return boundary
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    width = boundary_width(*mask.shape)
    interior = cv2.erode(
        mask[box].view(np.uint8),
        np.ones((3, 3), dtype=np.uint8),
        iterations=width,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    boundary[box] &= interior == 0
    return boundary
