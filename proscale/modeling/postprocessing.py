"""Results from queries: semantic, panoptic and instance (Mask2Former, §3; MaskFormer, §3.4).

Masks at the size of the result take time and memory: they are made strip by strip, and each kind of
result is a collector that takes from a strip what it needs before the next one is made.

Everywhere ``class_logits`` is ``(Q, K + 1)`` with “no object” last.
"""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from proscale.ops.mask_resize import Sizes, mask_probabilities
from proscale.utils.types import Size


class Collector(Protocol):
    """One kind of result, in the making."""

    queries: Tensor
    """``(N,)`` indices of the queries whose masks it takes, distinct and ascending."""

    def add(self, rows: slice, probabilities: Tensor) -> None:
        """Take these rows of its queries' masks, ``(N, rows, W)``. Not called if N is 0."""

    def result(self) -> Any:
        """What came of it, once all rows have been added."""


@torch.no_grad()
def collect_results(
    collectors: Mapping[str, Collector],
    mask_logits: Tensor,
    sizes: Sizes,
    *,
    resize_first: bool,
    strip_bytes: int,
) -> dict[str, Any]:
    """The collectors' results from logits ``(Q, h, w)``, by name; no gradient flows into them.

    The other arguments are those of :func:`~proscale.ops.mask_resize.mask_probabilities`.
    """
    # Masks are made for the queries that any result needs, ascending and without repetition.
    active = [collector for collector in collectors.values() if len(collector.queries)]
    if active:
        needed = torch.cat([collector.queries for collector in active]).unique()
        places = [torch.searchsorted(needed, collector.queries) for collector in active]
        strips = mask_probabilities(
            mask_logits, needed, sizes, resize_first=resize_first, strip_bytes=strip_bytes
        )
        # Autocast would round masks to eight bits before they are compared and added up.
        with torch.autocast(mask_logits.device.type, enabled=False):
            # One pass over the strips serves all kinds of results.
            for rows, probabilities in strips:
                for collector, place in zip(active, places, strict=True):
                    is_all = len(place) == len(needed)  # in the same order, then
                    collector.add(rows, probabilities if is_all else probabilities[place])
    return {name: collector.result() for name, collector in collectors.items()}


class SemanticScores:
    """Score of every class at every pixel: masks weighted by their queries' class probabilities.

    The result is ``(K, H, W)`` float32, values ≥ 0 (a sum over queries, no probability).
    """

    def __init__(self, class_logits: Tensor, size: Size):
        self.weights = _class_probabilities(class_logits).T
        self.queries = torch.arange(len(class_logits), device=class_logits.device)
        self.scores = self.weights.new_empty(len(self.weights), *size)

    def add(self, rows: slice, probabilities: Tensor) -> None:
        # Σ over queries of p(class) · mask (MaskFormer, §3.4): (K, N) · (N, rows·W).
        width = probabilities.shape[2]
        pixels = slice(rows.start * width, rows.stop * width)
        torch.mm(self.weights, probabilities.flatten(1), out=self.scores.flatten(1)[:, pixels])

    def result(self) -> Tensor:
        return self.scores


class SemanticLabels:
    """The class with the best of :class:`SemanticScores` at every pixel: ``(H, W)`` int64."""

    def __init__(self, class_logits: Tensor, size: Size):
        self.weights = _class_probabilities(class_logits).T
        self.queries = torch.arange(len(class_logits), device=class_logits.device)
        self.labels = self.queries.new_empty(size)

    def add(self, rows: slice, probabilities: Tensor) -> None:
        # Scores of all classes are held for a strip only.
        scores = self.weights @ probabilities.flatten(1)
        self.labels[rows] = scores.max(0).indices.view(probabilities.shape[1:])

    def result(self) -> Tensor:
        return self.labels


class PanopticMap:
    """Give every pixel to one query, and drop queries that lose most of their mask to others.

    The result is a map ``(H, W)`` int32 of segment ids, 0 where there is none; and for each segment
    a dict of ``id``, ``isthing`` and ``category_id`` (contiguous), with ``with_scores`` also of
    ``score``, its query's class probability in [0, 1], the best one's of fused segments.

    Args:
        things: classes that are counted; segments of any other class are fused.
        score_threshold: queries scored at or below it are dropped.
        overlap_threshold: a segment is kept if the pixels it wins are at least this fraction of its
            own mask.
        with_scores: whether the published dicts get a score as well.
    """

    def __init__(
        self,
        class_logits: Tensor,
        size: Size,
        *,
        things: Collection[int],
        score_threshold: float,
        overlap_threshold: float,
        with_scores: bool = False,
    ):
        # Queries that predict “no object”, or nothing with confidence, take no part.
        scores, labels = class_logits.float().softmax(-1).max(-1)
        keep = (labels != class_logits.shape[1] - 1) & (scores > score_threshold)
        # N of the Q queries are left.
        self.queries = keep.nonzero()[:, 0]
        self.scores = scores[self.queries]
        self.labels = labels[self.queries]
        self.things = things
        self.overlap_threshold = overlap_threshold
        self.with_scores = with_scores
        self.areas = torch.zeros_like(self.queries)
        # 2 * winner, plus 1 where its own mask has the pixel.
        self.winners = torch.zeros(size, dtype=torch.int32, device=class_logits.device)

    def add(self, rows: slice, probabilities: Tensor) -> None:
        # Each pixel goes to the query with the largest score · mask.
        winner = (self.scores[:, None, None] * probabilities).max(0).indices
        # A segment covers the pixels it wins where its own mask is at least one half.
        certain = probabilities.gather(0, winner[None])[0] >= 0.5
        self.winners[rows] = 2 * winner + certain
        self.areas += areas(probabilities >= 0.5)

    def result(self) -> tuple[Tensor, list[dict]]:
        if not len(self.queries):
            return self.winners, []
        # Pixels that each query wins: without and with its own mask.
        pixels = self.winners.flatten().bincount(minlength=2 * len(self.queries)).view(-1, 2)
        ids, segments = self._segments(
            self.labels.tolist(),
            won=pixels.sum(1).tolist(),
            covered=pixels[:, 1].tolist(),
            areas=self.areas.tolist(),
        )
        # A segment's score: its query's class probability, the best one of fused queries.
        if self.with_scores:
            scores = self.scores.tolist()
            for segment in segments:
                segment["score"] = max(
                    score for score, id_ in zip(scores, ids, strict=True) if id_ == segment["id"]
                )
        # Uncertain pixels belong to no segment.
        lookup = torch.tensor([[0, id_] for id_ in ids], dtype=torch.int32).flatten()
        panoptic = lookup.to(self.winners.device).index_select(0, self.winners.flatten())
        return panoptic.view_as(self.winners), segments

    def _segments(
        self, labels: list[int], *, won: list[int], covered: list[int], areas: list[int]
    ) -> tuple[list[int], list[dict]]:
        """Each query's segment id, 0 if it has none; and the segments."""
        # Ids from 1 in the order of the queries.
        ids = [0] * len(labels)
        segments: list[dict] = []
        fused: dict[int, int] = {}
        for query, label in enumerate(labels):
            # Occluded: the query has lost most of its own mask to others.
            if not covered[query] or won[query] / areas[query] < self.overlap_threshold:
                continue
            # Segments of one stuff class are fused.
            isthing = label in self.things
            if isthing or label not in fused:
                id_ = len(segments) + 1
                segments.append({"id": id_, "isthing": isthing, "category_id": label})
                ids[query] = id_
                if not isthing:
                    fused[label] = id_
            else:
                ids[query] = fused[label]
        return ids, segments


class InstanceSet:
    """The best-scored pairs of query and class, each with the query's mask.

    The result is ``Instances`` of the result's size with ``pred_masks`` ``(N, H, W)`` bool,
    ``pred_boxes`` around them, ``scores`` (class probability times mean mask probability inside the
    mask) and ``pred_classes``.

    Args:
        max_instances: pairs taken of all Q·K.
        things: classes whose instances are returned; None returns those of any class.
    """

    def __init__(
        self,
        class_logits: Tensor,
        size: Size,
        *,
        max_instances: int,
        things: Collection[int] | None,
    ):
        num_classes = class_logits.shape[1] - 1  # K
        # The best of all Q·K pairs of query and class.
        scores = _class_probabilities(class_logits).flatten()
        scores, best = scores.topk(min(max_instances, len(scores)), sorted=False)
        # A pair's number is query · K + class.
        queries, labels = best // num_classes, best % num_classes
        # A panoptic data set has instances of things alone.
        if things is not None:
            chosen = torch.isin(labels, labels.new_tensor(sorted(things)))
            scores, queries, labels = scores[chosen], queries[chosen], labels[chosen]
        self.scores, self.labels = scores, labels
        # One query may carry several classes: its mask is looked at once.
        self.queries, self.pairs = queries.unique(return_inverse=True)
        self.masks = labels.new_empty(len(labels), *size, dtype=torch.bool)
        self.areas = torch.zeros_like(self.queries)
        self.inside = scores.new_zeros(len(self.queries))
        self.row_peaks = scores.new_zeros(len(self.queries), size[0])
        self.column_peaks = scores.new_zeros(len(self.queries), size[1])

    def add(self, rows: slice, probabilities: Tensor) -> None:
        # The binary mask of each pair, its area, and what its score and its box need.
        masks = probabilities > 0.5
        torch.index_select(masks, 0, self.pairs, out=self.masks[:, rows])
        self.areas += areas(masks)
        self.inside += F.threshold(probabilities, 0.5, 0).flatten(1).sum(1)
        self.row_peaks[:, rows] = probabilities.amax(2)
        self.column_peaks = self.column_peaks.maximum(probabilities.amax(1))

    def result(self) -> Instances:
        result = Instances(tuple(self.masks.shape[-2:]))
        # Peaks of rows and columns tell where a mask has pixels, without the mask.
        boxes = boxes_around(self.row_peaks > 0.5, self.column_peaks > 0.5)
        # Score: class probability · mean mask probability inside the mask.
        quality = self.inside / (self.areas + 1e-6)
        # By pair: several may have one query's mask and box.
        result.pred_masks = self.masks
        result.pred_boxes = Boxes(boxes[self.pairs])
        result.scores = self.scores * quality[self.pairs]
        result.pred_classes = self.labels
        return result


def areas(masks: Tensor) -> Tensor:
    """Pixels of each mask: ``(N, H, W)`` bool to ``(N,)`` int32."""
    # PyTorch first makes integers of eight bytes out of bools, unless it takes them for bytes.
    return masks.view(torch.int8).flatten(1).sum(1, dtype=torch.int32)


def boxes_around(rows: Tensor, columns: Tensor) -> Tensor:
    """Tight boxes of masks: ``(N, 4)`` float32 as (x0, y0, x1, y1), the far corner exclusive; zeros
    for an empty mask.

    ``rows`` and ``columns``, ``(N, H)`` and ``(N, W)`` bool, say where a mask has a pixel.
    """
    if not len(rows):
        return rows.new_zeros((0, 4), dtype=torch.float32)
    # The first and the last row and column that the mask has, the latter found from behind.
    near, far = [], []
    for occupied in (columns.int(), rows.int()):
        near.append(occupied.argmax(1))
        far.append(occupied.shape[1] - occupied.flip(1).argmax(1))
    return torch.stack((*near, *far), 1).float() * rows.any(1)[:, None]


def _class_probabilities(class_logits: Tensor) -> Tensor:
    """``(Q, K)``: softmax with “no object”, which is then left out."""
    return class_logits.float().softmax(-1)[:, :-1]
