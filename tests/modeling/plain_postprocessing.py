"""Results from queries the straightforward way: all masks at full size, two resizings, one result
after the other. Slow and large; what the fast way is compared with."""

import torch
from torch.nn import functional as F


def resized(maps, size):
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def crop_and_resize(maps, sizes):
    return resized(maps[:, : sizes.image[0], : sizes.image[1]], sizes.result)


def mask_probabilities(mask_logits, sizes, *, resize_first):
    """``(Q, H, W)``."""
    masks = resized(mask_logits.float(), sizes.padded)
    if resize_first:
        return crop_and_resize(masks, sizes).sigmoid()
    return crop_and_resize(masks.sigmoid(), sizes)


def semantic(class_logits, masks):
    return torch.einsum("qc,qhw->chw", class_logits.float().softmax(-1)[:, :-1], masks)


def panoptic(class_logits, masks, *, things, score_threshold, overlap_threshold):
    scores, labels = class_logits.float().softmax(-1).max(-1)
    queries = [
        q
        for q in range(len(class_logits))
        if labels[q] != class_logits.shape[1] - 1 and scores[q] > score_threshold
    ]
    ids, segments, fused = torch.zeros(masks.shape[1:], dtype=torch.int32), [], {}
    if not queries:
        return ids, segments
    winner = torch.stack([scores[q] * masks[q] for q in queries]).argmax(0)
    for place, q in enumerate(queries):
        won, own = winner == place, masks[q] >= 0.5
        label = int(labels[q])
        if not (won & own).any() or won.sum() / own.sum() < overlap_threshold:
            continue
        if label not in things and label in fused:
            ids[won & own] = fused[label]
            continue
        segments.append({"id": len(segments) + 1, "isthing": label in things, "category_id": label})
        fused[label] = len(segments)
        ids[won & own] = len(segments)
    return ids, segments


def instances(class_logits, masks, *, max_instances, things):
    """Tuples of score, class, mask and box; the best first."""
    pairs = [
        (probability, query, label)
        for query, row in enumerate(class_logits.float().softmax(-1)[:, :-1].tolist())
        for label, probability in enumerate(row)
    ]
    found = []
    for probability, query, label in sorted(pairs, reverse=True)[:max_instances]:
        if things is not None and label not in things:
            continue
        mask = masks[query] > 0.5
        quality = masks[query][mask].sum() / (mask.sum() + 1e-6)
        found.append((probability * quality.item(), label, mask, box(mask)))
    return sorted(found, key=lambda instance: instance[0], reverse=True)


def box(mask):
    """[x0, y0, x1, y1], the far corner exclusive; zeros if there is no pixel."""
    rows, columns = mask.nonzero(as_tuple=True)
    if not len(rows):
        return [0, 0, 0, 0]
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
