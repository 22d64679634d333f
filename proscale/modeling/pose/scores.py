"""The score of a pose, by which poses are ranked and suppressed."""

import numpy as np
from numpy.typing import ArrayLike


def pose_scores(keypoint_scores: ArrayLike, box_scores: ArrayLike, threshold: float) -> np.ndarray:
    """(N,) score of each pose: the box's times the mean of its keypoints' above ``threshold``.

    Args:
        keypoint_scores: (N, K).
        box_scores: (N,).
        threshold: the pose's score is 0 where no keypoint's is above it.
    """
    scores = np.asarray(keypoint_scores, np.float64)
    # Keypoints that were hardly found do not count, rather than lower the mean.
    counts = scores > threshold
    means = (scores * counts).sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
    return np.asarray(box_scores, np.float64) * means
