"""Panoptic quality, on arrays alone.

PQ = (sum of IoU over matched pairs) / (TP + FP/2 + FN/2) (Kirillov et al., Panoptic Segmentation,
CVPR 2019, §4), counted as the COCO panoptic evaluator counts it, void and crowd regions included.
Only sums per category are kept. They are exact, so that the order of images and the cut into shards
have no influence, not even on the last digit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from proscale.data.formats.image_file import VOID
from proscale.data.formats.problems import first_few
from proscale.errors import DataError

# The IoU of a match is a float in (0.5, 1], a whole multiple of 2**-53. Sums of that multiple are
# kept in two halves, which overflow after 2**31 matches.
_IOU_UNIT = 2.0**53
_HALF = 32

Segments = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CategoryQuality:
    """Quality of one category. ``pq``, ``sq``, ``rq`` are percentages, nan if it never occurred."""

    id: int
    name: str
    isthing: bool
    pq: float
    sq: float
    rq: float
    tp: int
    fp: int
    fn: int

    @property
    def occurs(self) -> bool:
        """A segment of this category was counted, in the ground truth or in the predictions."""
        return self.tp + self.fp + self.fn > 0


@dataclass(frozen=True)
class MeanQuality:
    """Percentages averaged over the ``num_categories`` that occur; nan if none does."""

    pq: float
    sq: float
    rq: float
    num_categories: int


@dataclass(frozen=True)
class PanopticResults:
    """Three means and one entry per category."""

    all: MeanQuality
    things: MeanQuality
    stuff: MeanQuality
    per_category: tuple[CategoryQuality, ...]

    def summary(self) -> dict[str, float]:
        """Nine percentages: PQ, SQ, RQ, then with ``_th`` of things, with ``_st`` of stuff."""
        return {
            name + suffix: getattr(mean, name.lower())
            for suffix, mean in (("", self.all), ("_th", self.things), ("_st", self.stuff))
            for name in ("PQ", "SQ", "RQ")
        }


class PanopticQuality:
    """Counts matched and unmatched segments per category, image by image.

    Args:
        categories: COCO category dicts with ``id``, ``name`` and ``isthing`` (0 or 1).

    Raises:
        DataError: two categories share an id.
    """

    def __init__(self, categories: Sequence[Mapping[str, Any]]) -> None:
        self.categories = tuple(
            (int(c["id"]), str(c["name"]), bool(c["isthing"])) for c in categories
        )
        self._index = {category_id: i for i, (category_id, _, _) in enumerate(self.categories)}
        if len(self._index) != len(self.categories):
            raise DataError("categories: expected every id once only")
        # Rows: upper and lower half of the sum of IoU, TP, FP, FN.
        self._counts = np.zeros((5, len(self.categories)), dtype=np.int64)

    def update(
        self,
        predicted_map: np.ndarray,
        predicted_segments: Segments,
        true_map: np.ndarray,
        true_segments: Segments,
        *,
        image: object = "<unnamed>",
    ) -> None:
        """Add one image. Nothing is added when an error is raised.

        Args:
            predicted_map: (H, W) integers, the predicted segment id of each pixel; 0 is void.
            predicted_segments: COCO ``segments_info`` dicts: ``id``, ``category_id``.
            true_map: (H, W) integers, the true segment ids; 0 is void.
            true_segments: the same with ``iscrowd`` (absent means 0). One without any pixel is a
                false negative. Areas are counted in ``true_map``.
            image: its name, for error messages.

        Raises:
            DataError: the maps are not integer arrays of one (H, W); a map has an id that its
                segments lack; a predicted segment has no pixel; a segment's id is 0 or given
                twice; a category is unknown.
        """
        if predicted_map.shape != true_map.shape or true_map.ndim != 2:
            raise DataError(
                f"image {image}: the predicted map has shape {predicted_map.shape}, the true map "
                f"{true_map.shape}: expected the same (H, W)"
            )
        predicted_where, true_where = f"image {image}, predicted", f"image {image}, true"
        predicted_category = self._category_indices(predicted_segments, predicted_where)
        true_category = self._category_indices(true_segments, true_where)
        is_crowd = np.array([bool(s.get("iscrowd", 0)) for s in true_segments], dtype=bool)

        # Segments are mostly connected: runs along the rows in which neither map changes are far
        # fewer than pixels, and are counted instead of them.
        true_ids, predicted_ids = true_map.ravel(), predicted_map.ravel()
        is_start = np.ones(true_ids.size, dtype=bool)
        np.not_equal(true_ids[1:], true_ids[:-1], out=is_start[1:])
        is_start[1:] |= predicted_ids[1:] != predicted_ids[:-1]
        starts = np.flatnonzero(is_start)
        lengths = np.diff(starts, append=true_ids.size)
        rows = _positions(true_ids[starts], true_segments, true_where)
        columns = _positions(predicted_ids[starts], predicted_segments, predicted_where)
        # Pixels of every pair of segments; row 0 and column 0 are void. Float weights add up
        # exactly: the counts stay far below 2**53.
        shape = (1 + len(true_segments), 1 + len(predicted_segments))
        pairs = rows * shape[1] + columns
        overlap = np.bincount(pairs, weights=lengths, minlength=shape[0] * shape[1])
        overlap = overlap.astype(np.int64).reshape(shape)
        intersection, on_void = overlap[1:, 1:], overlap[0, 1:]
        true_area, predicted_area = overlap[1:].sum(axis=1), overlap[:, 1:].sum(axis=0)
        if not predicted_area.all():
            segment = predicted_segments[int(np.argmin(predicted_area))]["id"]
            raise DataError(f"{predicted_where} segment {segment}: it has no pixel in the map")

        # Matching (§4.1): segments of one category whose IoU exceeds 0.5, which is at most one pair
        # per segment. In integers, IoU > 0.5 is 2·intersection > union. Predicted pixels on void do
        # not enter the union, and crowds match nothing.
        union = true_area[:, None] + (predicted_area - on_void)[None, :] - intersection
        same_category = true_category[:, None] == predicted_category[None, :]
        matched = same_category & ~is_crowd[:, None] & (2 * intersection > union)
        # False negatives: unmatched true segments that are no crowds.
        missed = ~is_crowd & ~matched.any(axis=1)
        # False positives: unmatched predictions, unless more than half of one lies on void and on
        # the crowd segment of its category. Images should have one such segment per category; of
        # several COCO's evaluator takes the last.
        last_crowd = {true_category[i]: i for i in np.flatnonzero(is_crowd)}
        crowds = list(last_crowd.values())
        on_crowd = (intersection[crowds] * same_category[crowds]).sum(axis=0)
        spurious = ~matched.any(axis=0) & (2 * (on_void + on_crowd) <= predicted_area)

        rows, columns = np.nonzero(matched)
        units = (intersection[rows, columns] / union[rows, columns] * _IOU_UNIT).astype(np.int64)
        high, low, tp, fp, fn = self._counts
        np.add.at(high, true_category[rows], units >> _HALF)
        np.add.at(low, true_category[rows], units & (1 << _HALF) - 1)
        np.add.at(tp, true_category[rows], 1)
        np.add.at(fp, predicted_category[spurious], 1)
        np.add.at(fn, true_category[missed], 1)

    def merge(self, other: "PanopticQuality") -> None:
        """Add the counts of ``other``, which has the same categories."""
        if self.categories != other.categories:
            raise ValueError(
                "only counts over the same categories, in the same order, can be merged"
            )
        self._counts += other._counts

    def results(self) -> PanopticResults:
        """PQ, SQ and RQ over all images so far."""
        _, _, tp, fp, fn = self._counts
        # The sum of IoU over matched pairs, which Python's integers hold exactly.
        iou_sum = np.array(
            [((high << _HALF) + low) / _IOU_UNIT for high, low in self._counts[:2].T.tolist()]
        )
        # PQ = SQ·RQ: segmentation quality, the mean IoU of matched pairs, times recognition
        # quality, the F1 score.
        denominator = tp + 0.5 * fp + 0.5 * fn
        with np.errstate(invalid="ignore"):
            pq = 100 * iou_sum / denominator
            rq = 100 * tp / denominator
        # A category that occurs but never matches has SQ 0.
        sq = 100 * iou_sum / np.maximum(tp, 1)
        sq[denominator == 0] = np.nan

        columns = (values.tolist() for values in (pq, sq, rq, tp, fp, fn))
        per_category = tuple(
            CategoryQuality(*category, *values)
            for category, *values in zip(self.categories, *columns, strict=True)
        )
        return PanopticResults(
            all=_mean(per_category),
            things=_mean([c for c in per_category if c.isthing]),
            stuff=_mean([c for c in per_category if not c.isthing]),
            per_category=per_category,
        )

    def _category_indices(self, segments: Segments, where: str) -> np.ndarray:
        """(N,) positions in ``self.categories`` of the segments' categories."""
        for segment in segments:
            if segment["category_id"] not in self._index:
                raise DataError(
                    f"{where} segment {segment['id']} has category_id {segment['category_id']}: "
                    f"expected {first_few(sorted(self._index))}"
                )
        return np.array([self._index[s["category_id"]] for s in segments], dtype=np.int64)


def _positions(ids: np.ndarray, segments: Segments, where: str) -> np.ndarray:
    """1 + the position in ``segments`` of each of ``ids`` (N,); 0 for void."""
    if not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"{where} map: its dtype is {ids.dtype}: expected integer segment ids")
    # A binary search, for ids are any of 2**24 and segments are few.
    known = np.array([VOID, *(s["id"] for s in segments)], dtype=np.int64)
    order = np.argsort(known)
    in_order = known[order]
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    if repeated.size:
        reason = "0 means void" if repeated[0] == VOID else "the id is given twice"
        raise DataError(f"{where} segment {repeated[0]}: {reason}")
    ids = ids.astype(np.int64)
    positions = order[np.minimum(np.searchsorted(in_order, ids), len(known) - 1)]
    unlisted = ids[known[positions] != ids]
    if unlisted.size:
        raise DataError(f"{where} segment {unlisted[0]}: it is in the map but not in segments_info")
    return positions


def _mean(categories: Sequence[CategoryQuality]) -> MeanQuality:
    occurring = [(c.pq, c.sq, c.rq) for c in categories if c.occurs]
    pq, sq, rq = np.mean(occurring, axis=0).tolist() if occurring else [float("nan")] * 3
    return MeanQuality(pq=pq, sq=sq, rq=rq, num_categories=len(occurring))
