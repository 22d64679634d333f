"""Instance AP against Detectron2's evaluator, which calls pycocotools, and on ground truth."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BitMasks, Instances
from detectron2.utils import comm
from pycocotools import mask as rle
from pycocotools.coco import COCO

from proscale.data.formats.image_file import read_panoptic_png
from proscale.evaluation import InstanceEvaluator

NAMES = {10: "cat", 20: "dog"}


def instances(ids, segments):
    """The things of panoptic annotations as a model's output; ``category_id`` is contiguous."""
    things = [s for s in segments if s["isthing"] and not s["iscrowd"]]
    masks = np.array([ids == s["id"] for s in things]).reshape(len(things), *ids.shape)
    result = Instances(ids.shape)
    result.pred_masks = torch.from_numpy(masks)
    result.pred_boxes = BitMasks(result.pred_masks).get_bounding_boxes()
    result.scores = torch.full((len(things),), 0.9)
    result.pred_classes = torch.tensor([s["category_id"] for s in things], dtype=torch.long)
    return {"instances": result}


@pytest.fixture
def with_instances(toy_with_instances):
    return toy_with_instances


def write(toy, images, annotations, categories):
    """Put other content into the instances' JSON."""
    content = {"images": images, "annotations": annotations, "categories": categories}
    Path(MetadataCatalog.get(toy.name).json_file).write_text(json.dumps(content))


def run(evaluator, toy, image_ids):
    evaluator.reset()
    for entry in DatasetCatalog.get(toy.name):
        if entry["image_id"] in image_ids:
            segments = [{**s, "isthing": s["category_id"] < 2} for s in entry["segments_info"]]
            output = instances(toy.maps[entry["image_id"]], segments)
            evaluator.process([entry], [output])
    return evaluator.evaluate()["segm"]


def test_stuff_among_the_classes_is_ignored(with_instances, tmp_path):
    evaluator = InstanceEvaluator(with_instances.name, str(tmp_path / "out"))
    results = run(evaluator, with_instances, (3, 5, 7))
    assert results["AP"] == pytest.approx(100)
    assert {k for k in results if k.startswith("AP-")} == {"AP-cat", "AP-dog"}
    assert not (tmp_path / "out").exists(), "predictions are written on request"


def test_images_outside_of_the_data_set_do_not_count(with_instances):
    whole = run(InstanceEvaluator(with_instances.name), with_instances, (3, 7))
    assert whole["AP"] < 80
    MetadataCatalog.get(with_instances.name).image_ids = (3, 7)
    part = run(InstanceEvaluator(with_instances.name), with_instances, (3, 7))
    assert part["AP"] == pytest.approx(100)


def test_unknown_categories_are_refused(with_instances):
    write(with_instances, [], [], [{"id": 10, "name": "cat"}, {"id": 99, "name": "elk"}])
    with pytest.raises(ValueError, match=r"instances\.json: its categories \[99\]"):
        InstanceEvaluator(with_instances.name)


def test_things_may_have_any_contiguous_ids(with_instances):
    metadata = MetadataCatalog.get(with_instances.name)
    metadata.__dict__["thing_dataset_id_to_contiguous_id"] = {10: 2, 20: 5}
    evaluator = InstanceEvaluator(with_instances.name)
    for entry in DatasetCatalog.get(with_instances.name):
        segments = [{**s, "isthing": s["category_id"] < 2} for s in entry["segments_info"]]
        output = instances(with_instances.maps[entry["image_id"]], segments)
        output["instances"].pred_classes = output["instances"].pred_classes * 3 + 2
        evaluator.process([entry], [output])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)


def test_an_image_may_have_hundreds_of_instances(with_instances):
    evaluator = InstanceEvaluator(with_instances.name)
    for entry in DatasetCatalog.get(with_instances.name):
        segments = [{**s, "isthing": s["category_id"] < 2} for s in entry["segments_info"]]
        true = instances(with_instances.maps[entry["image_id"]], segments)["instances"]
        repeated = Instances.cat([true] * (300 // max(len(true), 1)))
        repeated.scores[len(true) :] = 0.1
        evaluator.process([entry], [{"instances": repeated}])
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)


def test_errors_name_the_image(with_instances):
    evaluator = InstanceEvaluator(with_instances.name)
    entry = DatasetCatalog.get(with_instances.name)[0]
    output = instances(with_instances.maps[7], [])
    evaluator.process([entry], [output])
    with pytest.raises(ValueError, match=r"image_id 7: .* 3 images, this one was predicted before"):
        evaluator.process([entry], [output])
    with pytest.raises(ValueError, match=r"image_id 99: .* is not one of them"):
        evaluator.process([{"image_id": 99}], [output])
    evaluator.reset()
    segments = [{"id": 1, "isthing": True, "iscrowd": 0, "category_id": 3}]
    with pytest.raises(ValueError, match=r"image_id 7: 3 is not the contiguous id.*\[0, 1\]"):
        evaluator.process([entry], [instances(with_instances.maps[7], segments)])
    evaluator.reset()
    with pytest.raises(ValueError, match=r"image_id 7: .*\(3, 4\), the image is \(12, 20\)"):
        evaluator.process([entry], [instances(np.zeros((3, 4)), [])])


def test_predictions_for_a_test_server(with_instances, tmp_path):
    out = tmp_path / "out"
    run(InstanceEvaluator(with_instances.name, str(out), save_predictions=True), with_instances, [])
    assert json.loads((out / "coco_instances_results.json").read_text()) == []
    evaluator = InstanceEvaluator(with_instances.name, str(out), save_predictions=True)
    run(evaluator, with_instances, (3, 5, 7))
    path = str(out / "coco_instances_results.json")
    annotations = COCO(MetadataCatalog.get(with_instances.name).json_file)
    predictions = annotations.loadRes(path)
    assert len(predictions.anns) == sum(not a["iscrowd"] for a in annotations.anns.values())
    for prediction in predictions.anns.values():
        assert prediction["category_id"] in NAMES
        mask = rle.decode(prediction["segmentation"])
        assert (mask == (with_instances.maps[prediction["image_id"]] == 0)).mean() < 1
        assert prediction["bbox"] == rle.toBbox(prediction["segmentation"]).tolist()


def test_a_split_without_annotations_is_saved_only(with_instances, tmp_path):
    path = with_instances.root / "instances.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"instances\.json has no annotations.*SAVE_PREDICTIONS"):
        InstanceEvaluator(with_instances.name)
    evaluator = InstanceEvaluator(with_instances.name, str(tmp_path), save_predictions=True)
    assert run(evaluator, with_instances, (3, 5, 7)) == {}
    with pytest.raises(
        ValueError, match=r"TEST\.SAVE_PREDICTIONS is True: expected an output folder"
    ):
        InstanceEvaluator(with_instances.name, save_predictions=True)


def test_ap_is_0_without_predictions_and_nan_without_objects(with_instances):
    evaluator = InstanceEvaluator(with_instances.name)
    assert evaluator.evaluate()["segm"]["AP"] == 0.0
    assert np.isnan(evaluator.evaluate()["segm"]["APl"])


class Detectron2sEvaluator(COCOEvaluator):
    """Without its assertion that class names are as many as categories, which stuff exceeds."""

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        names = [self._coco_api.cats[i]["name"] for i in sorted(self._coco_api.cats)]
        return super()._derive_coco_results(coco_eval, iou_type, class_names=names)


def perturbed(random, ids, segments, classes, size):
    """Instances moved, cut, doubled, mistaken; scores of one decimal, so that there are ties."""
    masks, labels = [], []
    for segment in segments:
        if not segment["isthing"]:
            continue
        for _ in range(random.integers(0, 4)):
            mask = np.roll(ids == segment["id"], random.integers(-size, size + 1, 2), axis=(0, 1))
            if random.random() < 0.2:
                mask &= np.arange(len(mask))[:, None] >= random.integers(len(mask))
            masks.append(mask)
            mistaken = random.random() < 0.2
            labels.append(random.choice(classes) if mistaken else segment["category_id"])
    result = Instances(ids.shape)
    result.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *ids.shape))
    result.pred_boxes = BitMasks(result.pred_masks).get_bounding_boxes()
    result.scores = torch.tensor(random.random(len(masks)).round(1), dtype=torch.float32)
    result.pred_classes = torch.tensor(labels, dtype=torch.long)
    return {"instances": result}


def outputs_of(name, *, size, maps=None):
    """[(entry, perturbed output)] of a data set."""
    random = np.random.default_rng(6)
    pairs = []
    for entry in DatasetCatalog.get(name):
        ids = read_panoptic_png(entry["pan_seg_file_name"])
        things = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id.values()
        segments = [{**s, "isthing": s["category_id"] in things} for s in entry["segments_info"]]
        pairs.append((entry, perturbed(random, ids, segments, list(things), size)))
    return pairs


def results_of(evaluator, pairs):
    evaluator.reset()
    for entry, output in pairs:
        evaluator.process([entry], [output])
    return evaluator.evaluate()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("source", ["toy", "sample"])
def test_results_equal_detectron2s(request, source):
    if source == "sample":
        request.getfixturevalue("sample_coco")
        name = "coco_2017_val_panoptic"
    else:
        name = request.getfixturevalue("with_instances").name
    pairs = outputs_of(name, size=6 if source == "sample" else 1)
    ours = results_of(InstanceEvaluator(name), pairs)
    theirs = Detectron2sEvaluator(name, tasks=("bbox", "segm"), use_fast_impl=False)
    theirs = results_of(theirs, pairs)
    assert ours.keys() == theirs.keys() == {"bbox", "segm"}
    for kind, expected in theirs.items():
        assert ours[kind] == pytest.approx(expected, abs=1e-9, nan_ok=True), kind
        assert 5 < ours[kind]["AP"] < 95


def test_ranks_merge_to_the_whole_to_the_last_digit(with_instances, monkeypatch):
    pairs = outputs_of(with_instances.name, size=1)
    whole, *ranks = (InstanceEvaluator(with_instances.name, boundary_iou=True) for _ in range(3))
    expected = results_of(whole, pairs)
    for rank, part in zip(ranks, (pairs[2:], pairs[:2]), strict=True):
        for entry, output in part:
            rank.process([entry], [output])
    sent = []
    with monkeypatch.context() as patch:
        patch.setattr(comm, "gather", lambda data: sent.append(data) or [])
        patch.setattr(comm, "is_main_process", lambda: False)
        assert [rank.evaluate() for rank in ranks] == [None, None]
    monkeypatch.setattr(comm, "gather", lambda data: sent)
    found = ranks[0].evaluate()
    assert repr(found) == repr(expected)


def test_predictions_are_not_kept(with_instances):
    """What is kept of an image does not depend on its size."""
    evaluator = InstanceEvaluator(with_instances.name)
    pairs = outputs_of(with_instances.name, size=1)
    results_of(evaluator, pairs)
    found = sum(len(output["instances"]) for _, output in pairs)
    assert len(pickle.dumps(evaluator._precision)) < 2000 + 200 * found


def test_boundary_ap_is_mask_ap_with_the_lesser_overlap(with_instances):
    """The masks shifted by one pixel: boundaries hardly overlap."""
    evaluator = InstanceEvaluator(with_instances.name, boundary_iou=True)
    perfect = results_of(evaluator, [(e, o) for e, o in ground_truth_outputs(with_instances, 0)])
    assert perfect["boundary"]["AP"] == pytest.approx(100)
    shifted = results_of(evaluator, [(e, o) for e, o in ground_truth_outputs(with_instances, 1)])
    # 11x4 pixels moved by a column: an IoU of 33 / 55 meets three of the ten thresholds.
    assert shifted["segm"]["AP50"] == pytest.approx(100)
    assert shifted["segm"]["AP"] == pytest.approx(30)
    assert shifted["boundary"]["AP"] < shifted["segm"]["AP"]


def ground_truth_outputs(toy, shift):
    for entry in DatasetCatalog.get(toy.name):
        segments = [{**s, "isthing": s["category_id"] < 2} for s in entry["segments_info"]]
        yield entry, instances(np.roll(toy.maps[entry["image_id"]], shift, axis=1), segments)


@pytest.mark.usefixtures("sample_coco")
def test_sample_ground_truth_scores_100():
    name = "coco_2017_val_panoptic"
    evaluator = InstanceEvaluator(name)
    evaluator.reset()
    for entry in DatasetCatalog.get(name):
        ids = read_panoptic_png(entry["pan_seg_file_name"])
        evaluator.process([entry], [instances(ids, entry["segments_info"])])
    results = evaluator.evaluate()["segm"]
    assert results["AP"] == pytest.approx(100)
    assert sum(key.startswith("AP-") for key in results) == 80
