"""Results from queries against their straightforward versions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proscale.modeling.postprocessing import (
    InstanceSet,
    PanopticMap,
    SemanticLabels,
    SemanticScores,
    boxes_around,
    collect_results,
)
from proscale.ops.mask_resize import Sizes

CLASSES = 4
THINGS = {0, 1}
SIZES = Sizes(padded=(24, 32), image=(20, 29), result=(33, 40))
STRIPS = {"one strip": 2**20, "many strips": 12 * 40 * 4 * 5, "rows": 1}


def predictions(seed, queries=12):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(queries, CLASSES + 1, generator=generator) * 4
    return logits, torch.randn(queries, 6, 8, generator=generator) * 3


def collect(collectors, mask_logits, *, resize_first=True, strip_bytes=2**20):
    named = {str(index): collector for index, collector in enumerate(collectors)}
    results = collect_results(
        named, mask_logits, SIZES, resize_first=resize_first, strip_bytes=strip_bytes
    )
    return list(results.values())


def assert_same_instances(found, expected):
    """`found` are `Instances`, `expected` the oracle's tuples."""
    order = found.scores.argsort(descending=True)
    assert len(order) == len(expected)
    for index, (score, label, mask, box) in zip(order.tolist(), expected, strict=True):
        assert found.scores[index].item() == pytest.approx(score, abs=1e-5)
        assert found.pred_classes[index] == label
        assert torch.equal(found.pred_masks[index], mask)
        assert found.pred_boxes.tensor[index].tolist() == box


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.5, 0.3), (0.8, 0.8), (1.0, 0.5)])
def test_panoptic_equals_definition(reference, seed, thresholds):
    logits, mask_logits = predictions(seed)
    options = dict(zip(("score_threshold", "overlap_threshold"), thresholds, strict=True))
    options["things"] = THINGS
    masks = reference.mask_probabilities(mask_logits, SIZES, resize_first=True)
    expected_map, expected_segments = reference.panoptic(logits, masks, **options)
    collector = PanopticMap(logits, SIZES.result, **options)
    ((found_map, found_segments),) = collect([collector], mask_logits, strip_bytes=5000)
    assert torch.equal(found_map, expected_map)
    assert found_map.dtype == torch.int32
    assert found_segments == expected_segments


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    queries=st.integers(0, 8),
    steepness=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    score_threshold=st.floats(0, 1),
    overlap_threshold=st.floats(0, 1),
    strip_bytes=st.sampled_from(list(STRIPS.values())),
)
def test_panoptic_maps_are_consistent(
    seed, queries, steepness, score_threshold, overlap_threshold, strip_bytes
):
    logits, mask_logits = predictions(seed, queries)
    # Rounded, so that scores and masks are often the same.
    logits, mask_logits = logits.round() * steepness, mask_logits.round() * steepness
    collector = PanopticMap(
        logits,
        SIZES.result,
        things=THINGS,
        score_threshold=score_threshold,
        overlap_threshold=overlap_threshold,
    )
    ((panoptic, segments),) = collect([collector], mask_logits, strip_bytes=strip_bytes)
    assert panoptic.shape == SIZES.result
    ids = [segment["id"] for segment in segments]
    assert ids == list(range(1, len(ids) + 1))
    assert set(panoptic.unique().tolist()) - {0} == set(ids)
    stuff = [s["category_id"] for s in segments if not s["isthing"]]
    assert len(stuff) == len(set(stuff))
    assert all(0 <= s["category_id"] < CLASSES for s in segments)
    assert all(s["isthing"] == (s["category_id"] in THINGS) for s in segments)


def test_panoptic_scores_are_class_probabilities():
    # Queries of a thing, of stuff twice, and of another thing, each with a quarter of the image.
    logits = torch.full((4, CLASSES + 1), -20.0)
    for query, (label, probability) in enumerate([(0, 0.9), (2, 0.6), (2, 0.8), (1, 0.7)]):
        logits[query, label] = torch.tensor(probability).log()
        logits[query, CLASSES] = torch.tensor(1 - probability).log()
    mask_logits = torch.full((4, 6, 8), -9.0)
    for query in range(4):
        mask_logits[query, :, 2 * query : 2 * query + 2] = 9.0
    options = {"things": THINGS, "score_threshold": 0.5, "overlap_threshold": 0.0}
    plain = PanopticMap(logits, SIZES.result, **options)
    scored = PanopticMap(logits, SIZES.result, with_scores=True, **options)
    (_, without), (_, segments) = collect([plain, scored], mask_logits)
    assert [s.pop("score") for s in segments] == pytest.approx([0.9, 0.8, 0.7], abs=1e-5)
    assert segments == without
    assert [segment["category_id"] for segment in segments] == [0, 2, 1]


@pytest.mark.parametrize("resize_first", [True, False])
def test_semantic_is_masks_weighted_by_classes(reference, resize_first):
    logits, mask_logits = predictions(0)
    # The published order: classes are weighed first, scores are resized.
    masks = reference.resized(mask_logits, SIZES.padded)
    if resize_first:
        masks = reference.crop_and_resize(masks, SIZES)
    expected = reference.semantic(logits, masks.sigmoid())
    if not resize_first:
        expected = reference.crop_and_resize(expected, SIZES)
    (scores,) = collect(
        [SemanticScores(logits, SIZES.result)], mask_logits, resize_first=resize_first
    )
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strip_bytes", STRIPS.values(), ids=STRIPS)
def test_labels_are_the_best_scores(strip_bytes):
    logits, mask_logits = predictions(0)
    scores, labels = collect(
        [SemanticScores(logits, SIZES.result), SemanticLabels(logits, SIZES.result)],
        mask_logits,
        strip_bytes=strip_bytes,
    )
    assert torch.equal(labels, scores.argmax(0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("max_instances", "things"), [(9, None), (9, THINGS), (1000, THINGS), (1000, set())]
)
def test_instances_are_the_best_pairs(reference, seed, max_instances, things):
    logits, mask_logits = predictions(seed)
    options = {"max_instances": max_instances, "things": things}
    collector = InstanceSet(logits, SIZES.result, **options)
    (found,) = collect([collector], mask_logits, strip_bytes=5000)
    masks = reference.mask_probabilities(mask_logits, SIZES, resize_first=True)
    assert found.image_size == SIZES.result
    assert found.pred_masks.shape[1:] == SIZES.result
    assert_same_instances(found, reference.instances(logits, masks, **options))


@pytest.mark.parametrize("strip_bytes", STRIPS.values(), ids=STRIPS)
@pytest.mark.parametrize("with_semantic", [True, False])
def test_results_made_in_one_pass_are_those_made_alone(strip_bytes, with_semantic):
    logits, mask_logits = predictions(3)

    def collectors():
        size = SIZES.result
        yield PanopticMap(logits, size, things=THINGS, score_threshold=0.7, overlap_threshold=0.3)
        yield InstanceSet(logits, size, max_instances=7, things=THINGS)
        if with_semantic:
            yield SemanticScores(logits, size)

    alone = [collect([collector], mask_logits)[0] for collector in collectors()]
    together = collect(list(collectors()), mask_logits, strip_bytes=strip_bytes)
    assert torch.equal(together[0][0], alone[0][0])
    assert together[0][1] == alone[0][1] != []
    assert torch.equal(together[1].pred_masks, alone[1].pred_masks)
    assert torch.equal(together[1].pred_boxes.tensor, alone[1].pred_boxes.tensor)
    torch.testing.assert_close(together[1].scores, alone[1].scores)
    for one, other in zip(together[2:], alone[2:], strict=True):
        torch.testing.assert_close(one, other)


def test_masks_that_no_result_needs_are_not_looked_at():
    logits, mask_logits = predictions(0)
    options = {"things": THINGS, "score_threshold": 0.8, "overlap_threshold": 0.3}
    collector = PanopticMap(logits, SIZES.result, **options)
    assert 0 < len(collector.queries) < len(logits)
    (expected,) = collect([collector], mask_logits)
    others = torch.ones(len(logits), dtype=torch.bool)
    others[collector.queries] = False
    mask_logits[others] = torch.nan
    (found,) = collect([PanopticMap(logits, SIZES.result, **options)], mask_logits)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


def test_mixed_precision_does_not_round_results():
    logits, mask_logits = predictions(0)

    def scores():
        return collect([SemanticScores(logits, SIZES.result)], mask_logits)[0]

    with torch.autocast("cpu", torch.bfloat16):
        mixed = scores()
    assert torch.equal(mixed, scores())


def test_boxes_are_tight_and_empty_masks_have_none():
    masks = torch.zeros(2, 5, 7, dtype=torch.bool)
    masks[0, 1:4, 2] = masks[0, 2, 2:6] = True
    assert boxes_around(masks.any(2), masks.any(1)).tolist() == [[2, 1, 6, 4], [0, 0, 0, 0]]
    assert boxes_around(masks[:0].any(2), masks[:0].any(1)).shape == (0, 4)
