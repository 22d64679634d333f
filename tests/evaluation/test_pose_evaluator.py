"""Keypoint AP and PCK from an annotation file and predicted instances."""

import copy
import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from pycocotools.coco import COCO

from proscale.errors import DataError
from proscale.evaluation import PoseEvaluator
from proscale.evaluation.pose_evaluator import DETECTED_BOXES, TRUE_BOXES

NAME = "pose_evaluator_test"
KEYS = (*("AP", "AP50", "AP75", "APm", "APl"), *("AR", "AR50", "AR75", "ARm", "ARl"))


@pytest.fixture
def case(golden):
    return golden("pose_metrics")


@pytest.fixture
def json_file(case, tmp_path, restored_catalogs):
    """The golden annotations as a registered data set."""
    path = tmp_path / "person_keypoints.json"
    path.write_text(json.dumps(case.meta["ground_truth"]))
    MetadataCatalog.get(NAME).set(json_file=str(path))
    return path


def instances(keypoints, scores, box, box_score, score):
    """A person as the model gives it: x and y are 0.5 more than pixel indices."""
    result = Instances((480, 640))
    points = torch.as_tensor(keypoints, dtype=torch.float32) + 0.5
    scores = torch.as_tensor(scores, dtype=torch.float32)
    result.pred_keypoints = torch.cat([points, scores[:, None]], dim=1)[None]
    result.pred_boxes = Boxes(torch.as_tensor(box, dtype=torch.float32)[None])
    result.box_scores = torch.tensor([float(box_score)])
    result.scores = torch.tensor([float(score)])
    result.pred_classes = torch.zeros(1, dtype=torch.int64)
    return {"instances": result}


@pytest.fixture
def persons(case):
    """[(input, output)] of the golden predictions."""
    ids = zip(case.meta["image_ids"], case.meta["annotation_ids"], strict=True)
    values = (case.keypoints, case.keypoint_scores, case.boxes, case.box_scores, case.scores)
    return [
        ({"image_id": image, "annotation_id": annotation}, instances(*of_person))
        for (image, annotation), *of_person in zip(ids, *values, strict=True)
    ]


def run(evaluator, persons):
    evaluator.reset()
    for input_, output in persons:
        evaluator.process([input_], [output])
    return evaluator.evaluate()


def test_golden_results(case, json_file, persons, tmp_path):
    evaluator = PoseEvaluator(NAME, (288, 384), str(tmp_path / "out"))
    results = run(evaluator, persons)["keypoints"]
    expected = list(case.meta["ap"].values())
    assert [results[key] for key in KEYS] == pytest.approx([100 * v for v in expected], abs=1e-3)
    for name in ("0.1", "0.05"):
        assert results[f"PCK@{name}"] == pytest.approx(100 * case.meta["pck"][name])
    content = json.loads((tmp_path / "out" / "keypoints.json").read_text())
    assert content["summary"] == results
    assert content["per_keypoint"][3] == {"name": "3", "PCK@0.1": None, "PCK@0.05": None}


def annotated_persons(annotations, shift=0.0):
    for a in annotations:
        if a["num_keypoints"] and not a["iscrowd"]:
            points = np.reshape(a["keypoints"], (-1, 3)).astype(float)
            x, y, width, height = a["bbox"]
            box = [x, y, x + width, y + height]
            output = instances(points[:, :2] + shift, np.ones(len(points)), box, 1.0, 1.0)
            yield {"image_id": a["image_id"], "annotation_id": a["id"]}, output


def test_half_a_pixel_is_seen(case, json_file):
    """With small tolerances annotations score 100, and half a pixel off they do not."""
    MetadataCatalog.get(NAME).set(keypoint_oks_sigmas=[0.001] * 17)
    annotations = case.meta["ground_truth"]["annotations"]
    evaluator = PoseEvaluator(NAME)
    exact = run(evaluator, annotated_persons(annotations))["keypoints"]
    assert exact["AP"] == exact["PCK@0.05"] == pytest.approx(100)
    assert run(evaluator, annotated_persons(annotations, shift=0.5))["keypoints"]["AP"] < 50


def test_what_is_evaluated_stays_as_it_is(json_file, persons):
    before = copy.deepcopy([output["instances"].pred_keypoints for _, output in persons])
    evaluator = PoseEvaluator(NAME)
    first, second = run(evaluator, persons), run(evaluator, persons)
    assert repr(first) == repr(second)
    for (_, output), keypoints in zip(persons, before, strict=True):
        assert torch.equal(output["instances"].pred_keypoints, keypoints)


def test_whose_boxes_is_said(json_file, persons, caplog):
    known = [person for person in persons if person[0]["annotation_id"] is not None]
    with caplog.at_level("INFO", "proscale"):
        assert run(PoseEvaluator(NAME), known)["boxes"] == TRUE_BOXES == "ground-truth boxes"
        assert "ground-truth boxes" in caplog.text
        results = run(PoseEvaluator(NAME), [({**i, "annotation_id": None}, o) for i, o in persons])
    assert results["boxes"] == DETECTED_BOXES == "detected boxes"
    assert "detected boxes" in caplog.text
    assert np.isnan(results["keypoints"]["PCK@0.1"])
    assert results["keypoints"]["AP"] > 0


def test_images_that_do_not_count(case, json_file):
    """``image_ids`` of a part of the file: persons of other images are not missed."""
    annotations = case.meta["ground_truth"]["annotations"]
    first = [a for a in annotations if a["image_id"] == 1]
    whole = run(PoseEvaluator(NAME), annotated_persons(first))["keypoints"]
    assert whole["AR"] < 50
    MetadataCatalog.get(NAME).set(image_ids=[1])
    part = run(PoseEvaluator(NAME), annotated_persons(first))["keypoints"]
    assert part["AR"] == part["PCK@0.05"] == pytest.approx(100)


def test_ranks_count_each_person_once(json_file, persons, monkeypatch):
    whole, *ranks = (PoseEvaluator(NAME) for _ in range(3))
    expected = run(whole, persons)
    sent = []
    with monkeypatch.context() as patch:
        patch.setattr(comm, "gather", lambda data: sent.append(data) or [])
        patch.setattr(comm, "is_main_process", lambda: False)
        # A sampler repeats the first persons to fill the second shard.
        for rank, part in zip(ranks, (persons[:18], persons[18:] + persons[:2]), strict=True):
            assert run(rank, part) is None
    monkeypatch.setattr(comm, "gather", lambda data: sent)
    found = ranks[0].evaluate()
    assert found["keypoints"] == pytest.approx(expected["keypoints"])


def test_predictions_for_a_test_server(case, json_file, persons, tmp_path):
    evaluator = PoseEvaluator(NAME, output_dir=str(tmp_path), save_predictions=True)
    run(evaluator, persons)
    path = tmp_path / "coco_keypoints_results.json"
    found = COCO(str(json_file)).loadRes(str(path)).anns
    assert len(found) == case.kept.sum()
    first = persons[0][1]["instances"]
    expected = first.pred_keypoints[0].double() - torch.tensor([0.5, 0.5, 0])
    assert found[1]["keypoints"] == pytest.approx(expected.ravel().tolist())
    width, height = found[1]["bbox"][2:]
    assert found[1]["area"] == pytest.approx(width * height)


def test_nobody_is_found(json_file):
    results = run(PoseEvaluator(NAME), [])["keypoints"]
    assert results["AP"] == 0
    assert np.isnan(results["PCK@0.1"])


def test_without_areas_there_is_pck_alone(case, json_file, persons, caplog):
    content = case.meta["ground_truth"]
    for annotation in content["annotations"]:
        del annotation["area"]
    json_file.write_text(json.dumps(content))
    results = run(PoseEvaluator(NAME), persons)["keypoints"]
    assert set(results) == {"PCK@0.1", "PCK@0.05"}
    assert "16 annotations have no area: keypoint AP is not computed" in caplog.text


def test_other_numbers_of_keypoints_are_refused(case, json_file, persons):
    MetadataCatalog.get(NAME).set(keypoint_oks_sigmas=[0.1] * 20)
    with pytest.raises(DataError, match=r"annotation 100 has 51 numbers as keypoints: .* 20"):
        PoseEvaluator(NAME)


def test_unknown_persons_are_refused(json_file, persons):
    evaluator = PoseEvaluator(NAME)
    output = persons[0][1]
    with pytest.raises(ValueError, match="image_id 99: expected one of the 6 images"):
        evaluator.process([{"image_id": 99}], [output])
    with pytest.raises(ValueError, match="annotation_id 3: expected one of the 16 annotations"):
        evaluator.process([{"image_id": 1, "annotation_id": 3}], [output])
    output["instances"].pred_keypoints = output["instances"].pred_keypoints[:, :5]
    with pytest.raises(ValueError, match=r"pred_keypoints has 5 keypoints, data set .* 17"):
        evaluator.process([{"image_id": 1}], [output])
