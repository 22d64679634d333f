"""Average precision as COCO defines it, on overlaps alone (https://cocodataset.org/#detection-eval).

An image is matched as soon as it comes, and of each detection only its score and some bits remain.
So memory hardly grows with the data set, and any overlap will do: masks, boxes, boundaries. Figures
do not depend on the order of images or on how a data set is cut into shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from proscale.evaluation.figures import nan_mean

THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
"""Areas in pixels, both ends included; objects of other areas neither count nor harm."""
MAX_DETECTIONS = 100
"""Of each image and category, the best-scored ones take part."""

_RECALLS = np.linspace(0.0, 1.0, 101)
_LOW, _HIGH = np.array(list(AREA_RANGES.values())).T[:, :, None]
_BITS = (2, len(AREA_RANGES), len(THRESHOLDS))
_RECORD = np.dtype(
    [
        ("category", np.int32),
        ("image", np.int64),
        ("score", np.float64),
        ("bits", np.uint8, np.prod(_BITS) // 8),
    ]
)


@dataclass(frozen=True)
class Objects:
    """N objects of one image and category: `areas` (N,) in pixels, `is_crowd` (N,) bool."""

    areas: np.ndarray
    is_crowd: np.ndarray


class AveragePrecision:
    """Collects matches and turns them into AP.

    Args:
        num_categories: K.
    """

    def __init__(self, num_categories: int) -> None:
        self._num_categories = num_categories
        self._records: list[np.ndarray] = []
        # Objects that are to be found.
        self._positives = np.zeros((num_categories, len(AREA_RANGES)), dtype=np.int64)

    def add_truth(self, category: int, truth: Objects) -> None:
        """Count the objects of an image, whether or not something is detected in it.

        Args:
            category: 0 to K - 1.
            truth: N objects.
        """
        self._positives[category] += (~_is_ignored(truth)).sum(axis=1)

    def add_detections(
        self,
        category: int,
        image: int,
        scores: np.ndarray,
        areas: np.ndarray,
        overlaps: np.ndarray,
        truth: Objects,
    ) -> None:
        """Match the detections of one image and category.

        The best-scored one chooses first, the object it overlaps most. At each threshold an object
        is matched once; crowds any number of times, and who matches one does not count.

        Args:
            category: 0 to K - 1.
            image: the image's number in the data set, which decides between equal scores.
            scores: (D,), in descending order.
            areas: (D,) in pixels.
            overlaps: (D, N) in [0, 1].
            truth: N objects; not added to those to be found, see `add_truth`.
        """
        keep = slice(MAX_DETECTIONS)
        bits = match(areas[keep], overlaps[keep], truth)
        records = np.empty(len(scores[keep]), dtype=_RECORD)
        records["category"], records["image"] = category, image
        records["score"] = scores[keep]
        records["bits"] = np.packbits(bits.reshape(-1, len(records)).T, axis=1)
        self._records.append(records)

    def merge(self, other: "AveragePrecision") -> None:
        """Add the objects and detections of `other`, of other images."""
        self._records += other._records
        self._positives += other._positives

    def compact(self) -> None:
        """Join what is held into one array, to be sent to another process."""
        self._records = [np.concatenate([np.empty(0, dtype=_RECORD), *self._records])]

    def precision(self) -> np.ndarray:
        """(areas, thresholds, K) AP in percent; nan where a category has nothing to be found."""
        self.compact()
        records = self._records[0]
        result = np.full((*_BITS[1:], self._num_categories), np.nan)
        # Equal scores in the order of images; within an image the sort keeps the order.
        records = records[np.lexsort((records["image"], -records["score"], records["category"]))]
        ends = np.searchsorted(records["category"], np.arange(self._num_categories + 1))
        for category, (start, end) in enumerate(pairwise(ends)):
            packed = records["bits"][start:end]
            bits = np.unpackbits(packed, axis=1).T.reshape(*_BITS, end - start).astype(bool)
            for area, positives in enumerate(self._positives[category]):
                if positives:
                    matched, ignored = bits[:, area]
                    result[area, :, category] = 100 * _average_precision(
                        matched & ~ignored, ~matched & ~ignored, int(positives)
                    )
        return result

    def summary(self, category_names: Sequence[str]) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl and every category's, `AP-(name)`, in percent.

        Means are taken over the categories that have something to be found; nan if there are none.
        """
        precision = self.precision()
        every, small, medium, large = precision
        figures = {
            "AP": every,
            "AP50": every[0],
            "AP75": every[5],
            "APs": small,
            "APm": medium,
            "APl": large,
        }
        per_category = {
            f"AP-{name}": every[:, category] for category, name in enumerate(category_names)
        }
        return {name: nan_mean(values) for name, values in (figures | per_category).items()}


def match(areas: np.ndarray, overlaps: np.ndarray, truth: Objects) -> np.ndarray:
    """Match detections, the best-scored one first, at every area range and threshold.

    Args:
        areas: (D,) in pixels.
        overlaps: (D, N).
        truth: N objects.

    Returns:
        (2, areas, thresholds, D) bool: whether the detection is matched, and whether it does not
        count, for it matches what does not or is unmatched and of another size.
    """
    object_ignored = np.broadcast_to(_is_ignored(truth)[:, None], (*_BITS[1:], len(truth.areas)))
    is_free = np.ones(object_ignored.shape, dtype=bool)
    matched = np.zeros((*_BITS[1:], len(areas)), dtype=bool)
    outside = (areas < _LOW) | (areas > _HIGH)
    ignored = np.repeat(outside[:, None], len(THRESHOLDS), axis=1)
    thresholds = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    candidates = np.flatnonzero(overlaps.max(axis=1, initial=0.0) >= thresholds[0])
    for detection in candidates:
        overlap = overlaps[detection]
        is_open = (is_free | truth.is_crowd) & (overlap >= thresholds)
        counting = is_open & ~object_ignored
        # Objects that do not count are taken for want of others only.
        is_open = np.where(counting.any(axis=-1, keepdims=True), counting, is_open)
        # Of equal overlaps the last.
        reverse = np.where(is_open, overlap, -1.0)[..., ::-1].argmax(axis=-1)
        best = len(overlap) - 1 - reverse[..., None]
        found = is_open.any(axis=-1)
        matched[..., detection] = found
        of_best = np.take_along_axis(object_ignored, best, axis=-1)[..., 0]
        ignored[..., detection] = np.where(found, of_best, ignored[..., detection])
        still_free = np.take_along_axis(is_free, best, axis=-1) & ~found[..., None]
        np.put_along_axis(is_free, best, still_free, axis=-1)
    return np.stack([matched, ignored])


def _is_ignored(truth: Objects) -> np.ndarray:
    """(areas, N): crowds, and objects of another size."""
    return truth.is_crowd | (truth.areas < _LOW) | (truth.areas > _HIGH)


def _average_precision(is_right: np.ndarray, is_wrong: np.ndarray, positives: int) -> np.ndarray:
    """(T,) mean over 101 recalls of the best precision at that recall or above, from (T, D)."""
    right, wrong = is_right.cumsum(axis=1), is_wrong.cumsum(axis=1)
    precision = right / np.maximum(right + wrong, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Beyond the highest recall precision is 0.
    precision = np.pad(precision, ((0, 0), (0, 1)))
    places = [np.searchsorted(recall, _RECALLS) for recall in right / positives]
    return np.take_along_axis(precision, np.array(places), axis=1).mean(axis=1)
