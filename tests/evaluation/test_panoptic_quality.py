"""PQ against the COCO panoptic evaluator, its definition written out, and its invariants."""

import json
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from proscale.data.formats.image_file import read_panoptic_png, write_panoptic_png
from proscale.evaluation.panoptic_quality import PanopticQuality

GOLDEN = json.loads(Path(__file__).with_name("golden_panoptic_quality.json").read_text())
CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 5, "name": "dog", "isthing": 1},
    {"id": 9, "name": "sky", "isthing": 0},
]


def golden_images():
    return [
        (
            np.array(image["predicted_map"]),
            image["predicted_segments"],
            np.array(image["true_map"]),
            image["true_segments"],
        )
        for image in GOLDEN["images"]
    ]


def count(categories, images):
    quality = PanopticQuality(categories)
    for image in images:
        quality.update(*image)
    return quality


def literal_counts(images):
    """``{category: [IoU sum, TP, FP, FN]}``, each pair of segments looked at as sets of pixels."""
    counts = defaultdict(lambda: [0.0, 0, 0, 0])
    for predicted_map, predicted_segments, true_map, true_segments in images:

        def pixels(of_map, segment_id):
            return set(np.flatnonzero(of_map == segment_id).tolist())

        void = pixels(true_map, 0)
        true_pixels = {s["id"]: pixels(true_map, s["id"]) for s in true_segments}
        matched_ids = set()
        for p in predicted_segments:
            area = pixels(predicted_map, p["id"])
            forgiven = set(void)
            is_matched = False
            crowds = [t for t in true_segments if t.get("iscrowd")]
            crowds = [t for t in crowds if t["category_id"] == p["category_id"]]
            if crowds:
                forgiven |= true_pixels[crowds[-1]["id"]]
            for t in true_segments:
                if t.get("iscrowd") or t["category_id"] != p["category_id"]:
                    continue
                region = true_pixels[t["id"]]
                iou = len(area & region) / len((area | region) - (area & void))
                if iou > 0.5:
                    counts[p["category_id"]][0] += iou
                    counts[p["category_id"]][1] += 1
                    matched_ids.add(t["id"])
                    is_matched = True
            if not is_matched and len(area & forgiven) / len(area) <= 0.5:
                counts[p["category_id"]][2] += 1
        for t in true_segments:
            if not t.get("iscrowd") and t["id"] not in matched_ids:
                counts[t["category_id"]][3] += 1
    return counts


def assert_agrees(results, counts):
    """Every category's PQ, SQ, RQ and counts follow from ``{category: [IoU sum, TP, FP, FN]}``."""
    occurring = []
    for entry in results.per_category:
        iou, tp, fp, fn = counts[entry.id]
        assert (entry.tp, entry.fp, entry.fn) == (tp, fp, fn), entry.name
        if tp + fp + fn:
            expected = (
                100 * iou / (tp + fp / 2 + fn / 2),
                100 * iou / tp if tp else 0.0,
                100 * tp / (tp + fp / 2 + fn / 2),
            )
            assert (entry.pq, entry.sq, entry.rq) == pytest.approx(expected, abs=1e-9)
            occurring.append(expected)
        else:
            assert np.isnan([entry.pq, entry.sq, entry.rq]).all()
    mean = np.mean(occurring, axis=0)
    found = (results.all.pq, results.all.sq, results.all.rq)
    assert found == pytest.approx(tuple(mean), abs=1e-9)
    assert results.all.num_categories == len(occurring)


def test_golden_results_of_the_coco_evaluator():
    results = count(GOLDEN["categories"], golden_images()).results()
    for name in ("all", "things", "stuff"):
        expected, found = GOLDEN["results"][name], getattr(results, name)
        assert found.num_categories == expected["n"]
        for metric in ("pq", "sq", "rq"):
            assert getattr(found, metric) == pytest.approx(100 * expected[metric], abs=1e-9)
    for entry in results.per_category:
        expected = GOLDEN["results"]["per_category"][str(entry.id)]
        assert (entry.tp, entry.fp, entry.fn) == (expected["tp"], expected["fp"], expected["fn"])
        if entry.occurs:
            for metric in ("pq", "sq", "rq"):
                assert getattr(entry, metric) == pytest.approx(100 * expected[metric], abs=1e-9)


def test_golden_images_cover_the_special_cases():
    """The comparison above means little unless these occur."""
    crowds = [
        [s["category_id"] for s in image["true_segments"] if s["iscrowd"]]
        for image in GOLDEN["images"]
    ]
    assert any(crowds)
    assert any(len(set(c)) < len(c) for c in crowds), "several crowds of one category"
    assert any(0 in np.array(image["true_map"]) for image in GOLDEN["images"])
    found = {c: q["tp"] + q["fp"] + q["fn"] for c, q in GOLDEN["results"]["per_category"].items()}
    assert found["12"] == 0 and found["133"] > 0
    assert GOLDEN["results"]["per_category"]["133"]["fn"] == 0


def test_definition_written_out():
    images = golden_images()
    assert_agrees(count(GOLDEN["categories"], images).results(), literal_counts(images))


@st.composite
def images(draw):
    """A predicted and a true map of at most 6×6 pixels, whose segments have any category."""
    size = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    sides = []
    for may_be_crowd in (False, True):
        ids = draw(arrays(np.int64, size, elements=st.integers(0, 4)))
        segments = [
            {
                "id": id_,
                "category_id": draw(st.integers(1, 3)),
                "iscrowd": int(may_be_crowd and draw(st.integers(0, 3)) == 0),
            }
            for id_ in sorted(set(ids.ravel().tolist()) - {0})
        ]
        sides += [ids, segments]
    return tuple(sides)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(images(), min_size=1, max_size=3))
def test_any_images_are_counted_as_defined(some):
    categories = [{"id": i, "name": str(i), "isthing": i < 3} for i in (1, 2, 3)]
    expected = literal_counts(some)
    for entry in count(categories, some).results().per_category:
        iou, *counts = expected[entry.id]
        assert [entry.tp, entry.fp, entry.fn] == counts
        if entry.tp:
            assert entry.sq == pytest.approx(100 * iou / entry.tp)


def one_row(*runs):
    """A (1, W) map from (id, length) pairs."""
    return np.concatenate([np.full((1, n), i) for i, n in runs], axis=1)


@pytest.mark.parametrize(
    ("predicted", "true", "crowd", "expected"),
    [
        # IoU of exactly one half does not match; one pixel more does.
        ([(1, 10), (0, 10)], [(1, 20)], [], (0, 1, 1)),
        ([(1, 11), (0, 9)], [(1, 20)], [], (1, 0, 0)),
        # 10 of 20 predicted pixels are void: the union is 10, not 20.
        ([(1, 20)], [(1, 10), (0, 10)], [], (1, 0, 0)),
        # Exactly half on void is a false positive, more is not.
        ([(1, 20)], [(0, 10), (2, 10)], [], (0, 1, 1)),
        ([(1, 20)], [(0, 11), (2, 9)], [], (0, 0, 1)),
        # A crowd takes no match and is not missed; predictions on it are let off.
        ([(1, 20)], [(3, 20)], [3], (0, 0, 0)),
        ([(0, 20)], [(3, 20)], [3], (0, 0, 0)),
        ([(1, 20)], [(3, 6), (0, 5), (2, 9)], [3], (0, 0, 1)),
        # Two predictions on one segment: the larger one matches.
        ([(1, 12), (4, 8)], [(1, 20)], [], (1, 1, 0)),
    ],
)
def test_limits_of_matching(predicted, true, crowd, expected):
    """All segments are of category 1 but segment 2, which is of category 5."""

    def segments(runs):
        ids = {i for i, _ in runs} - {0}
        return [
            {"id": i, "category_id": 5 if i == 2 else 1, "iscrowd": int(i in crowd)} for i in ids
        ]

    image = (one_row(*predicted), segments(predicted), one_row(*true), segments(true))
    results = count(CATEGORIES, [image]).results()
    found = np.sum([(c.tp, c.fp, c.fn) for c in results.per_category], axis=0)
    assert tuple(found) == expected
    assert sum(c.tp for c in results.per_category[1:]) == 0


def test_a_crowd_of_another_category_excuses_nothing():
    true_map = one_row((7, 10))
    image = (
        one_row((1, 10)),
        [{"id": 1, "category_id": 1}],
        true_map,
        [{"id": 7, "category_id": 5, "iscrowd": 1}],
    )
    assert count(CATEGORIES, [image]).results().per_category[0].fp == 1


@pytest.mark.parametrize(("order", "false_positives"), [((3, 7), 0), ((7, 3), 1)])
def test_of_several_crowds_of_a_category_the_last_one_counts(order, false_positives):
    """As the COCO evaluator does: 60 of 100 pixels on segment 7 excuse, 40 on segment 3 do not."""
    image = (
        one_row((1, 100)),
        [{"id": 1, "category_id": 1}],
        one_row((3, 40), (7, 60)),
        [{"id": i, "category_id": 1, "iscrowd": 1} for i in order],
    )
    assert count(CATEGORIES, [image]).results().per_category[0].fp == false_positives


def test_a_perfect_prediction_is_100_and_an_empty_one_0():
    images = golden_images()
    perfect = [(t, [s for s in ts if not s["iscrowd"]], t, ts) for _, _, t, ts in images]
    perfect = [(t * np.isin(t, [s["id"] for s in ps]), ps, t, ts) for t, ps, _, ts in perfect]
    summary = count(GOLDEN["categories"], perfect).results().summary()
    assert list(summary) == ["PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"]
    assert list(summary.values()) == [100.0] * 9
    empty = [(np.zeros_like(t), [], t, ts) for _, _, t, ts in images]
    assert count(GOLDEN["categories"], empty).results().all.pq == 0.0


def test_without_any_segment_the_means_are_nan():
    blank = np.zeros((4, 5), dtype=np.int32)
    results = count(CATEGORIES, [(blank, [], blank, [])]).results()
    assert np.isnan(list(results.summary().values())).all()
    assert results.all.num_categories == 0


def test_renaming_segments_changes_nothing():
    random = np.random.RandomState(1)
    images = golden_images()

    def renamed(segment_map, segments):
        new = {0: 0}
        for number, s in enumerate(segments):
            new[s["id"]] = 1 + number + 100 * random.randint(100_000)
        renamed_map = np.vectorize(new.__getitem__, otypes=[np.int64])(segment_map)
        return renamed_map, [{**s, "id": new[s["id"]]} for s in segments]

    others = [(*renamed(p, ps), *renamed(t, ts)) for p, ps, t, ts in images]
    categories = GOLDEN["categories"]
    expected = count(categories, images).results().summary()
    assert count(categories, others).results().summary() == expected


def test_shards_merge_to_the_whole_in_any_order():
    images, categories = golden_images(), GOLDEN["categories"]
    whole = count(categories, images).results()
    merged = PanopticQuality(categories)
    for shard in (images[17:], images[:5], [], images[5:17]):
        merged.merge(pickle.loads(pickle.dumps(count(categories, shard))))
    assert merged.results().summary() == whole.summary(), "not to the last digit"
    for a, b in zip(merged.results().per_category, whole.per_category, strict=True):
        assert (a.tp, a.fp, a.fn) == (b.tp, b.fp, b.fn)


def test_the_sum_of_many_ious_is_exact():
    """Of 1/3 and 2/3 as floats; adding floats one by one would drift."""
    true_map = one_row((1, 3), (2, 3))
    segments = [{"id": i, "category_id": 1} for i in (1, 2)]
    image = one_row((1, 2), (0, 1), (2, 3)), segments, true_map, segments
    quality = PanopticQuality(CATEGORIES)
    for _ in range(3000):
        quality.update(*image)
    # IoU 2/3 and 1 in every image; the mean is what one image gives.
    assert quality.results().summary()["PQ"] == count(CATEGORIES, [image]).results().all.pq


def test_state_does_not_grow_with_images():
    images, categories = golden_images(), GOLDEN["categories"]
    one, all_of_them = count(categories, images[:1]), count(categories, images)
    assert len(pickle.dumps(one)) == len(pickle.dumps(all_of_them))


def test_counts_over_other_categories_do_not_merge():
    with pytest.raises(ValueError, match="same categories"):
        PanopticQuality(CATEGORIES).merge(PanopticQuality(CATEGORIES[::-1]))


def test_categories_with_one_id_twice():
    with pytest.raises(ValueError, match="id"):
        PanopticQuality(CATEGORIES + CATEGORIES[:1])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint32, np.int64])
def test_any_integer_type(dtype):
    image = one_row((1, 3), (0, 2)).astype(dtype), [{"id": 1, "category_id": 9}]
    assert count(CATEGORIES, [(*image, *image)]).results().all.pq == 100.0


def faulty(predicted_map=None, predicted=None, true=None, true_map=None):
    good = [{"id": 1, "category_id": 1, "iscrowd": 0}, {"id": 2, "category_id": 9, "iscrowd": 0}]
    row = one_row((1, 3), (2, 3), (0, 3))
    return (
        row if predicted_map is None else predicted_map,
        good if predicted is None else predicted,
        row if true_map is None else true_map,
        good if true is None else true,
    )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (faulty(predicted=[{"id": 2, "category_id": 9}]), "predicted segment 1: it is in the map"),
        (faulty(true=[{"id": 1, "category_id": 1}]), "true segment 2: it is in the map"),
        (faulty(predicted_map=one_row((1, 9))), "predicted segment 2: it has no pixel"),
        (
            faulty(predicted=[{"id": 1, "category_id": 1}, {"id": 2, "category_id": 4}]),
            r"predicted segment 2 has category_id 4: expected 1, 5, 9",
        ),
        (
            faulty(true=[{"id": 1, "category_id": 0}, {"id": 2, "category_id": 9}]),
            "true segment 1 has category_id 0",
        ),
        (faulty(true_map=np.zeros((2, 9), dtype=int)), r"\(1, 9\).*\(2, 9\)"),
        (faulty(predicted_map=one_row((1, 4), (2, 4), (-1, 1))), "predicted segment -1"),
        (faulty(predicted_map=one_row((1, 4), (2, 5)).astype(float)), "float64"),
        (faulty(true=[{"id": 1, "category_id": 1}] * 2), "true segment 1: the id is given twice"),
        (faulty(predicted=[{"id": 0, "category_id": 1}]), "predicted segment 0: 0 means void"),
    ],
)
def test_errors_name_image_and_segment_and_count_nothing(image, message):
    quality = PanopticQuality(CATEGORIES)
    with pytest.raises(ValueError, match=rf"image 000042\.png.*{message}"):
        quality.update(*image, image="000042.png")
    assert quality.results().all.num_categories == 0


def test_a_true_segment_without_pixels_is_missed():
    predicted_map, predicted, true_map, true = faulty()
    absent = {"id": 8, "category_id": 5, "iscrowd": 0}
    results = count(CATEGORIES, [(predicted_map, predicted, true_map, true + [absent])]).results()
    assert results.per_category[1].fn == 1


def corrupted(random, true_map, true_segments, categories):
    """A faulty prediction of a real image: moved, mistaken, split, merged, painted over."""
    predicted = np.roll(true_map, random.randint(-12, 13, size=2), axis=(0, 1)).astype(np.int64)
    of = {s["id"]: s["category_id"] for s in true_segments}
    height, width = predicted.shape
    for segment_id in list(of):
        kind = random.choice(["keep", "keep", "keep", "mistake", "split", "merge", "drop"])
        if kind == "mistake":
            of[segment_id] = categories[random.randint(len(categories))]["id"]
        elif kind == "split":
            new = int(random.randint(256**3))
            rows = np.arange(height)[:, None] > random.randint(height)
            predicted[(predicted == segment_id) & rows] = new
            of[new] = of[segment_id]
        elif kind == "merge":
            other = int(random.choice(list(of)))
            predicted[predicted == segment_id] = other
        elif kind == "drop":
            predicted[predicted == segment_id] = 0
    top, left = random.randint(height), random.randint(width)
    predicted[top : top + height // 4, left : left + width // 4] = 7
    of[7] = int(random.choice(list(of.values())))
    visible = [i for i in np.unique(predicted).tolist() if i]
    return predicted, [{"id": i, "category_id": of[i]} for i in visible]


@pytest.fixture(scope="session")
def corrupted_sample(sample_coco):
    """The sample's validation images: ``(categories, [(annotation, update's arguments)])``."""
    content = json.loads((sample_coco / "annotations/panoptic_val2017.json").read_text())
    random = np.random.RandomState(7)
    images = []
    for annotation in content["annotations"]:
        true_map = read_panoptic_png(sample_coco / "panoptic_val2017" / annotation["file_name"])
        true_segments = annotation["segments_info"]
        prediction = corrupted(random, true_map, true_segments, content["categories"])
        images.append((annotation, (*prediction, true_map, true_segments)))
    return content["categories"], images


def test_sample_equals_the_definition_written_out(corrupted_sample):
    categories, images = corrupted_sample
    arguments = [image for _, image in images[:25]]
    results = count(categories, arguments).results()
    assert 5 < results.all.pq < 95
    assert_agrees(results, literal_counts(arguments))


def test_sample_equals_the_coco_evaluator(corrupted_sample, sample_coco, tmp_path):
    evaluation = pytest.importorskip(
        "panopticapi.evaluation", reason="pip install --no-deps panopticapi-lite==0.2.0"
    )
    categories, images = corrupted_sample
    pairs = []
    for annotation, (predicted_map, predicted_segments, _, _) in images:
        write_panoptic_png(tmp_path / annotation["file_name"], predicted_map)
        pairs.append((annotation, {**annotation, "segments_info": predicted_segments}))
    by_id = {c["id"]: c for c in categories}
    theirs = evaluation.pq_compute_single_core(
        0, pairs, str(sample_coco / "panoptic_val2017"), str(tmp_path), by_id
    )

    ours = count(categories, [image for _, image in images]).results()
    counts = {c: [theirs[c].iou, theirs[c].tp, theirs[c].fp, theirs[c].fn] for c in by_id}
    assert_agrees(ours, counts)
    for mean, isthing in ((ours.all, None), (ours.things, True), (ours.stuff, False)):
        expected, _ = theirs.pq_average(by_id, isthing=isthing)
        assert mean.num_categories == expected["n"]
        found = (mean.pq, mean.sq, mean.rq)
        assert found == pytest.approx([100 * expected[k] for k in ("pq", "sq", "rq")], abs=1e-9)


def test_sample_ground_truth_scores_100(corrupted_sample):
    categories, images = corrupted_sample
    annotated = [(t, [{**s, "iscrowd": 0} for s in ts]) for _, (_, _, t, ts) in images]
    assert count(categories, [(*image, *image) for image in annotated]).results().all.pq == 100.0
