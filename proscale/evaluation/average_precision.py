"""Average precision as COCO defines it, on overlaps alone (https://cocodataset.org/#detection-eval).

An image is matched as soon as it comes, and of each detection only its score and some bits remain.
Any overlap will do: of masks, boxes, boundaries. The result does not depend on the order of images
or on how a data set is cut into shards.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from proscale.evaluation.results import nan_mean

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Overlaps from which on a detection matches."""
AREA_RANGES = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
"""Areas in pixels, both ends included; objects of other areas are ignored."""
MAX_DETECTIONS = 100
"""Of each image and category, only so many of the best-scored detections take part."""

_RECALLS = np.linspace(0.0, 1.0, 101)
_LOW, _HIGH = np.array(list(AREA_RANGES.values())).T[:, :, None]
# Of a detection: matched or not, ignored or not, in each area range and at each threshold.
_BITS = (2, len(AREA_RANGES), len(THRESHOLDS))
_FIELDS = [("category", np.int32), ("image", np.int64), ("score", np.float64)]
_RECORD = np.dtype([*_FIELDS, ("bits", np.uint8, np.prod(_BITS) // 8)])


class Objects:
    """The N true objects of a category in an image, from their COCO annotations."""

    def __init__(self, annotations: Sequence[Mapping[str, Any]]) -> None:
        self.is_crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool)
        areas = np.array([a["area"] for a in annotations], dtype=np.float64)
        # (areas, N): crowds, and objects outside of the area range.
        self.is_ignored = self.is_crowd | (areas < _LOW) | (areas > _HIGH)


class AveragePrecision:
    """Collects matches and turns them into AP, for K = ``num_categories``."""

    def __init__(self, num_categories: int) -> None:
        self._num_categories = num_categories
        self._records: list[np.ndarray] = []
        # Objects to be found, TP + FN.
        self._positives = np.zeros((num_categories, len(AREA_RANGES)), dtype=np.int64)

    def add_objects(self, category: int, objects: Objects) -> None:
        """Count objects of an image, with detections or without."""
        self._positives[category] += (~objects.is_ignored).sum(axis=1)

    def add_detections(
        self,
        category: int,
        image: int,
        scores: np.ndarray,
        areas: np.ndarray,
        overlaps: np.ndarray,
        objects: Objects,
    ) -> None:
        """Match the D detections of one image and category with its N objects.

        Args:
            category: 0 to K - 1.
            image: the image's number in the data set, which decides between equal scores.
            scores: (D,), in descending order.
            areas: (D,) in pixels.
            overlaps: (D, N) in [0, 1].
            objects: not added to those to be found, see ``add_objects``.
        """
        keep = slice(MAX_DETECTIONS)
        bits = _match(areas[keep], overlaps[keep], objects)
        records = np.empty(len(scores[keep]), dtype=_RECORD)
        records["category"], records["image"] = category, image
        records["score"] = scores[keep]
        records["bits"] = np.packbits(bits.reshape(-1, len(records)).T, axis=1)
        self._records.append(records)

    def merge(self, other: "AveragePrecision") -> None:
        """Add the objects and detections of ``other``, of other images."""
        self._records += other._records
        self._positives += other._positives

    def compact(self) -> None:
        """Join the records into one array, to be sent to another process."""
        self._records = [np.concatenate([np.empty(0, dtype=_RECORD), *self._records])]

    def precision(self) -> np.ndarray:
        """(areas, thresholds, K) AP in percent; nan where a category has nothing to be found."""
        self.compact()
        records = self._records[0]
        result = np.full((*_BITS[1:], self._num_categories), np.nan)
        # By category and score. Equal scores are in the order of images, and within an image in the
        # order in which they were added, for the sort is stable.
        records = records[np.lexsort((records["image"], -records["score"], records["category"]))]
        ends = np.searchsorted(records["category"], np.arange(self._num_categories + 1))
        for category, (start, end) in enumerate(pairwise(ends)):
            packed = records["bits"][start:end]
            bits = np.unpackbits(packed, axis=1).T.reshape(*_BITS, end - start).astype(bool)
            for area, positives in enumerate(self._positives[category].tolist()):
                if positives:
                    matched, ignored = bits[:, area]
                    result[area, :, category] = 100 * _average_precision(
                        matched & ~ignored, ~matched & ~ignored, positives
                    )
        return result

    def summary(self, category_names: Sequence[str]) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl and every category's, ``AP-(name)``, in percent.

        Means are taken over the categories that have something to be found; nan if there are none.
        """
        every, small, medium, large = self.precision()
        metrics = {"AP": every, "AP50": every[0], "AP75": every[5]}
        metrics |= {"APs": small, "APm": medium, "APl": large}
        metrics |= {f"AP-{name}": every[:, i] for i, name in enumerate(category_names)}
        return {name: nan_mean(values) for name, values in metrics.items()}


def _match(areas: np.ndarray, overlaps: np.ndarray, objects: Objects) -> np.ndarray:
    """COCO's greedy matching, in every area range and at every threshold at once.

    Returns:
        (2, areas, thresholds, D) bool: the detection is matched; it is ignored, because its match
        is or because it is unmatched and outside of the area range.
    """
    # All arrays below are (areas, thresholds, N or D).
    object_ignored = np.broadcast_to(
        objects.is_ignored[:, None], (*_BITS[1:], len(objects.is_crowd))
    )
    is_free = np.ones(object_ignored.shape, dtype=bool)
    matched = np.zeros((*_BITS[1:], len(areas)), dtype=bool)
    # An unmatched detection is a false positive only within the area range.
    outside = (areas < _LOW) | (areas > _HIGH)
    ignored = np.repeat(outside[:, None], len(THRESHOLDS), axis=1)
    thresholds = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    candidates = np.flatnonzero(overlaps.max(axis=1, initial=0.0) >= thresholds[0])
    # 1. Detections choose one after the other, the best-scored one first.
    for detection in candidates:
        overlap = overlaps[detection]
        # 2. An object can be chosen once, a crowd any number of times.
        is_open = (is_free | objects.is_crowd) & (overlap >= thresholds)
        # 3. Ignored objects are chosen only if there are no others.
        counting = is_open & ~object_ignored
        is_open = np.where(counting.any(axis=-1, keepdims=True), counting, is_open)
        # 4. The choice is the object of the largest overlap, of equal ones the last.
        reverse = np.where(is_open, overlap, -1.0)[..., ::-1].argmax(axis=-1)
        best = len(overlap) - 1 - reverse[..., None]
        found = is_open.any(axis=-1)
        matched[..., detection] = found
        # 5. A match with an ignored object is neither right nor wrong.
        of_best = np.take_along_axis(object_ignored, best, axis=-1)[..., 0]
        ignored[..., detection] = np.where(found, of_best, ignored[..., detection])
        still_free = np.take_along_axis(is_free, best, axis=-1) & ~found[..., None]
        np.put_along_axis(is_free, best, still_free, axis=-1)
    return np.stack([matched, ignored])


def _average_precision(is_right: np.ndarray, is_wrong: np.ndarray, positives: int) -> np.ndarray:
    """(T,) AP of T thresholds from true and false positives (T, D) in descending score."""
    right, wrong = is_right.cumsum(axis=1), is_wrong.cumsum(axis=1)
    precision = right / np.maximum(right + wrong, 1)
    # Interpolated: the best precision at this recall or any higher one.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Beyond the highest recall precision is 0.
    precision = np.pad(precision, ((0, 0), (0, 1)))
    # The mean over 101 recalls.
    places = [np.searchsorted(recall, _RECALLS) for recall in right / positives]
    return np.take_along_axis(precision, np.array(places), axis=1).mean(axis=1)
