"""Results from queries: semantic, panoptic and instance (Mask2Former, §3; MaskFormer, §3.4).

Everywhere ``class_logits`` is ``(Q, K + 1)`` with “no object” last and ``mask_logits`` is
``(Q, H, W)`` at the size of the result.
"""

from collections.abc import Collection

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor


def semantic_inference(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Score of every class at every pixel: masks weighted by their queries' class probabilities.

    Returns:
        ``(K, H, W)``, values ≥ 0 (a sum over queries, no probability).
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    return torch.einsum("qc,qhw->chw", probabilities, mask_logits.float().sigmoid())


def panoptic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    things: Collection[int],
    score_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict]]:
    """Give every pixel to one query, and drop queries that lose most of their mask to others.

    Args:
        things: classes that are counted; segments of any other class are fused.
        score_threshold: queries scored at or below it are dropped.
        overlap_threshold: a segment is kept if the pixels it wins are at least this share of its
            own mask.

    Returns:
        ``(H, W)`` int32 segment ids, 0 where there is none; and for each segment a dict of ``id``,
        ``isthing`` and ``category_id`` (contiguous).
    """
    scores, labels = class_logits.float().softmax(-1).max(-1)
    keep = (labels != class_logits.shape[1] - 1) & (scores > score_threshold)
    masks = mask_logits[keep].float().sigmoid()
    labels = labels[keep].tolist()
    panoptic = torch.zeros(mask_logits.shape[-2:], dtype=torch.int32, device=mask_logits.device)
    if not labels:
        return panoptic, []

    winner = (scores[keep, None, None] * masks).argmax(0)
    certain = masks.gather(0, winner[None])[0] >= 0.5
    won = winner.flatten().bincount(minlength=len(labels)).tolist()
    covered = winner[certain].bincount(minlength=len(labels)).tolist()
    own = (masks >= 0.5).flatten(1).sum(1).tolist()

    ids = [0] * len(labels)
    segments: list[dict] = []
    fused: dict[int, int] = {}
    for query, label in enumerate(labels):
        if not (covered[query] and own[query]) or won[query] / own[query] < overlap_threshold:
            continue
        isthing = label in things
        if isthing or label not in fused:
            segments.append({"id": len(segments) + 1, "isthing": isthing, "category_id": label})
            ids[query] = len(segments)
            if not isthing:
                fused[label] = len(segments)
        else:
            ids[query] = fused[label]
    lookup = torch.tensor(ids, dtype=torch.int32, device=panoptic.device)
    return torch.where(certain, lookup[winner], panoptic), segments


def instance_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    max_instances: int,
    things: Collection[int] | None,
) -> Instances:
    """The best-scored pairs of query and class, each with the query's mask.

    Args:
        max_instances: pairs taken of all Q·K.
        things: classes whose instances are returned; None returns those of any class.

    Returns:
        ``Instances`` of the result's size with ``pred_masks`` ``(N, H, W)`` bool, ``pred_boxes``
        around them, ``scores`` (class probability times mean mask probability inside the mask) and
        ``pred_classes``.
    """
    num_classes = class_logits.shape[1] - 1
    scores = class_logits.float().softmax(-1)[:, :-1].flatten()
    scores, best = scores.topk(min(max_instances, len(scores)), sorted=False)
    queries, labels = best // num_classes, best % num_classes
    if things is not None:
        chosen = torch.isin(labels, labels.new_tensor(sorted(things)))
        scores, queries, labels = scores[chosen], queries[chosen], labels[chosen]

    # One query may carry several classes: its mask is looked at once.
    distinct, inverse = queries.unique(return_inverse=True)
    logits = mask_logits[distinct].float()
    masks = logits > 0
    inside = (logits.sigmoid() * masks).flatten(1).sum(1)
    quality = inside / (masks.flatten(1).sum(1) + 1e-6)

    result = Instances(tuple(mask_logits.shape[-2:]))
    result.pred_masks = masks[inverse]
    result.pred_boxes = Boxes(mask_boxes(masks)[inverse])
    result.scores = scores * quality[inverse]
    result.pred_classes = labels
    return result


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes of ``(N, H, W)`` bool masks: ``(N, 4)`` float32 as (x0, y0, x1, y1), the far
    corner exclusive; zeros for an empty mask."""
    boxes = masks.new_zeros((len(masks), 4), dtype=torch.float32)
    for axis, column in ((1, 0), (2, 1)):
        occupied = masks.any(dim=axis).float()
        length = occupied.shape[1]
        if len(masks):
            boxes[:, column] = occupied.argmax(1)
            boxes[:, column + 2] = length - occupied.flip(1).argmax(1)
    return boxes * masks.flatten(1).any(1)[:, None]
