"""Results from queries against literal versions of their definitions."""

import pytest
import torch

from proscale.modeling.postprocessing import (
    instance_inference,
    mask_boxes,
    panoptic_inference,
    semantic_inference,
)

THINGS = {0, 1}


def predictions(seed, queries=12, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(queries, classes + 1, generator=generator) * 4
    masks = torch.randn(queries, 3, 4, generator=generator) * 3
    masks = torch.nn.functional.interpolate(masks[None], scale_factor=4, mode="bilinear")[0]
    return logits, masks


def literal_panoptic(logits, masks, *, score_threshold, overlap_threshold):
    scores, labels = logits.softmax(-1).max(-1)
    probabilities = masks.sigmoid()
    queries = [
        q
        for q in range(len(logits))
        if labels[q] != logits.shape[1] - 1 and scores[q] > score_threshold
    ]
    panoptic, segments, fused = torch.zeros(masks.shape[1:], dtype=torch.int32), [], {}
    if not queries:
        return panoptic, segments
    winner = torch.stack([scores[q] * probabilities[q] for q in queries]).argmax(0)
    for place, q in enumerate(queries):
        won, own = winner == place, probabilities[q] >= 0.5
        label = int(labels[q])
        if not (won & own).any() or won.sum() / own.sum() < overlap_threshold:
            continue
        if label not in THINGS and label in fused:
            panoptic[won & own] = fused[label]
            continue
        segments.append({"id": len(segments) + 1, "isthing": label in THINGS, "category_id": label})
        fused[label] = len(segments)
        panoptic[won & own] = len(segments)
    return panoptic, segments


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.5, 0.3), (0.8, 0.8), (1.0, 0.5)])
def test_panoptic_equals_definition(seed, thresholds):
    options = dict(zip(("score_threshold", "overlap_threshold"), thresholds, strict=True))
    expected_map, expected_segments = literal_panoptic(*predictions(seed), **options)
    found_map, found_segments = panoptic_inference(*predictions(seed), things=THINGS, **options)
    assert torch.equal(found_map, expected_map)
    assert found_segments == expected_segments


def test_semantic_is_masks_weighted_by_classes():
    logits, masks = predictions(0)
    scores = semantic_inference(logits, masks)
    weights = logits.softmax(-1)[:, :-1]
    expected = (weights[:, :, None, None] * masks.sigmoid()[:, None]).sum(0)
    torch.testing.assert_close(scores, expected)


def test_instances_are_the_best_pairs():
    logits, masks = predictions(0)
    result = instance_inference(logits, masks, max_instances=9, things=None)
    pairs = [
        (p, q, c)
        for q, row in enumerate(logits.softmax(-1)[:, :-1].tolist())
        for c, p in enumerate(row)
    ]
    expected = []
    for probability, q, c in sorted(pairs, reverse=True)[:9]:
        inside = masks[q] > 0
        quality = masks[q].sigmoid()[inside].sum() / (inside.sum() + 1e-6)
        expected.append((probability * quality.item(), c, int(inside.sum())))
    found = zip(result.scores, result.pred_classes, result.pred_masks.sum((1, 2)), strict=True)
    for (a, b, c), (score, label, area) in zip(
        sorted(expected), sorted((float(s), int(k), int(n)) for s, k, n in found), strict=True
    ):
        assert (score, label, area) == (pytest.approx(a, abs=1e-5), b, c)


def test_instances_of_things_only_and_fewer_than_asked_for():
    logits, masks = predictions(0)
    result = instance_inference(logits, masks, max_instances=1000, things=THINGS)
    assert len(result) == 12 * len(THINGS)
    assert set(result.pred_classes.tolist()) == THINGS


def test_boxes_are_tight_and_empty_masks_have_none():
    masks = torch.zeros(2, 5, 7, dtype=torch.bool)
    masks[0, 1:4, 2] = masks[0, 2, 2:6] = True
    assert mask_boxes(masks).tolist() == [[2, 1, 6, 4], [0, 0, 0, 0]]
    assert mask_boxes(masks[:0]).shape == (0, 4)
