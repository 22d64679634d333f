"""Boundary IoU (Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation,
CVPR 2021, §4): the IoU of those pixels of two masks that are close to their contours.
"""

import cv2
import numpy as np

DILATION_RATIO = 0.02
"""The distance d of the paper, as a fraction of the image's diagonal."""


def boundary_width(height: int, width: int) -> int:
    """The distance d in pixels, at least 1, in an image of this size."""
    return max(1, round(DILATION_RATIO * float(np.hypot(height, width))))


def inner_boundary(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool → (H, W) bool, the pixels of a mask within ``boundary_width`` of its contour.

    Distances are the chessboard's. The image's border counts as contour.
    """
    boundary = mask.copy()
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return boundary
    # Nothing changes outside of the mask's bounding box.
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    # The boundary G_d ∩ G is the mask less its erosion by d pixels.
    kernel, width = np.ones((3, 3), dtype=np.uint8), boundary_width(*mask.shape)
    pixels, border = mask[box].view(np.uint8), cv2.BORDER_CONSTANT
    interior = cv2.erode(pixels, kernel, iterations=width, borderType=border, borderValue=0)
    boundary[box] &= interior == 0
    return boundary
