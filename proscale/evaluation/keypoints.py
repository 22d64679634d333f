"""Measures of human poses: PCK, object keypoint similarity, and suppression by it.

Points are pixel indices, (x, y); arrays and CPU tensors are taken alike. N is a number of persons,
K of keypoints.
"""

import numpy as np
from numpy.typing import ArrayLike


def keypoint_pck(
    predicted: ArrayLike, truth: ArrayLike, visible: ArrayLike, boxes: ArrayLike, threshold: float
) -> tuple[np.ndarray, float]:
    """Percentage of correct keypoints (Yang and Ramanan, TPAMI 2013), as fractions.

    A keypoint is correct if it is nearer to the true one than ``threshold`` times the longer side
    of the person's box.

    Args:
        predicted, truth: (N, K, 2).
        visible: (N, K), above 0 where the keypoint is labelled; others do not count.
        boxes: (N, 4), XYXY; persons with boxes of size 0 do not count.
        threshold: PCK@0.1 has 0.1.

    Returns:
        (K,) the fraction of persons for each keypoint, NaN where it never occurs, and the mean of
        those that occur.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    boxes = np.asarray(boxes, np.float64)
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)[:, None]
    counts = (np.asarray(visible) > 0) & (sides > 0)
    is_correct = np.linalg.norm(predicted - truth, axis=-1) < threshold * sides
    # 0 / 0 of keypoints that never occur is NaN.
    with np.errstate(invalid="ignore"):
        per_keypoint = (is_correct & counts).sum(axis=0) / counts.sum(axis=0)
    # The mean over keypoints: neither over persons, nor over all points in one pool.
    occurring = per_keypoint[~np.isnan(per_keypoint)]
    return per_keypoint, float(occurring.mean()) if occurring.size else float("nan")


def object_keypoint_similarity(
    predicted: ArrayLike,
    truth: ArrayLike,
    visible: ArrayLike,
    areas: ArrayLike,
    sigmas: ArrayLike,
) -> np.ndarray:
    """OKS as COCO defines it (https://cocodataset.org/#keypoints-eval), (N,) in [0, 1].

    Args:
        predicted, truth: (N, K, 2).
        visible: (N, K), above 0 where the keypoint counts; NaN is the result where none does.
        areas: (N,) of the persons, square pixels.
        sigmas: (K,) tolerance of each keypoint relative to the root of the area.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    areas = np.asarray(areas, np.float64)[:, None]
    squared = ((predicted - truth) ** 2).sum(axis=-1)
    # COCO's constant is twice the standard deviation that annotators have.
    variances = (2 * np.asarray(sigmas, np.float64)) ** 2
    similarity = np.exp(-squared / (2 * variances * (areas + np.spacing(1))))
    counts = np.asarray(visible) > 0
    with np.errstate(invalid="ignore"):
        return (similarity * counts).sum(axis=1) / counts.sum(axis=1)


def oks_nms(
    keypoints: ArrayLike,
    scores: ArrayLike,
    areas: ArrayLike,
    sigmas: ArrayLike,
    threshold: float,
) -> np.ndarray:
    """Greedy suppression of the poses of one image (Papandreou et al., CVPR 2017, §3.3).

    Args:
        keypoints: (N, K, 2 or more), x and y first; all of them count.
        scores: (N,).
        areas: (N,); two poses are compared with the mean of theirs.
        sigmas: (K,), see :func:`object_keypoint_similarity`.
        threshold: a pose goes whose OKS with a better one is above it.

    Returns:
        indices of those that are kept, in descending order of score and, if equal, of place.
    """
    points = np.asarray(keypoints, np.float64)[..., :2]
    areas = np.asarray(areas, np.float64)
    # As released: of equal scores the last one comes first.
    left = np.argsort(np.asarray(scores, np.float64), kind="stable")[::-1]
    kept = []
    while left.size:
        # The best one that is left stays, and suppresses those that are like it.
        best, left = left[0], left[1:]
        kept.append(best)
        similarity = object_keypoint_similarity(
            points[left],
            points[best],
            np.ones(points[left].shape[:2]),
            (areas[left] + areas[best]) / 2,
            sigmas,
        )
        left = left[similarity <= threshold]
    return np.array(kept, dtype=np.int64)
