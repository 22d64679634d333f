"""Poses of persons: as evaluation finds them, from boxes that are given or found."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

import proscale
from proscale.checkpoint import Checkpointer
from proscale.data import PoseMapper
from proscale.errors import ConfigError, DataError
from proscale.predict.persons import MAX_PERSONS, boxes_of, check_boxes, read_boxes

BOXES = np.array([[4.5, 2, 30, 44], [20, 10, 60.5, 48], [-5, 0, 12, 30]])


@pytest.fixture
def pose_cfg(small_pose_cfg):
    """Random weights give alike poses of low scores: none is suppressed, and all count."""
    small_pose_cfg.MODEL.POSE.OKS_NMS_THRESH = 1.0
    small_pose_cfg.MODEL.POSE.KEYPOINT_SCORE_THRESH = 0.0
    return small_pose_cfg


class Finder:
    """Stands for a predictor that finds these objects in every image."""

    task = "detection"

    def __init__(self, prediction, classes):
        self.prediction, self.classes = prediction, classes

    def __call__(self, images):
        return [self.prediction] * len(images)


@pytest.fixture
def people(detections, classes):
    """The predictor's name for cats is person."""
    cat, dog = detections.objects
    found = replace(detections, objects=(replace(cat, name="person"), dog))
    return Finder(found, replace(classes, names=("person", *classes.names[1:])))


def test_poses_equal_evaluation(pose_cfg, random_weights, pixels):
    weights = random_weights(pose_cfg)
    scored = np.column_stack((BOXES, [0.9, 0.5, 1.0]))
    found = proscale.Predictor(pose_cfg, weights)(pixels(), scored)
    assert (found.task, found.keypoints.shape) == ("keypoints", (3, 17, 3))

    model = build_model(pose_cfg).eval()
    Checkpointer(model, fine_tune=False).load(weights)
    mapper = PoseMapper(pose_cfg, is_train=False)
    with torch.no_grad():
        outputs = model([mapper.view(pixels(), box[:4], box[4]) for box in scored])
    scores = np.array([float(output["instances"].scores) for output in outputs])
    order = np.argsort(-scores, kind="stable")
    assert found.scores == pytest.approx(scores[order], abs=1e-5)
    assert found.boxes == pytest.approx(BOXES[order])
    for pose, index in zip(found.objects, order, strict=True):
        expected = outputs[index]["instances"].pred_keypoints[0].double().numpy()
        # COCO's coordinates here, Detectron2's there.
        assert np.allclose(np.array(pose.keypoints) + (0.5, 0.5, 0), expected, atol=1e-3)
        assert pose.box_score == pytest.approx(scored[index, 4])


def test_persons_of_several_images_are_one_batch(pose_cfg, make_predictor, pixels, monkeypatch):
    predictor = make_predictor(pose_cfg)
    images, boxes = [pixels(), pixels(60, 40, seed=1), pixels(seed=2)], [BOXES, [], BOXES[:1]]
    singles = [predictor(*one) for one in zip(images, boxes, strict=True)]
    sizes = []
    predictor._network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    together = predictor(images, boxes)
    assert sizes == [4]
    for single, one in zip(singles, together, strict=True):
        assert np.allclose(single.keypoints, one.keypoints, atol=1e-3)
    monkeypatch.setattr("proscale.predict.persons._BATCH", 3)
    predictor(images, boxes)
    assert sizes == [4, 3, 1]


def test_nobody_is_a_result(pose_cfg, make_predictor, pixels):
    nobody = make_predictor(pose_cfg)(pixels(), [])
    assert (nobody.height, nobody.width, nobody.objects) == (48, 64, ())
    assert nobody.keypoints.shape == (0, 17, 3) and nobody.boxes.shape == (0, 4)


def test_the_same_pose_twice_is_suppressed(pose_cfg, make_predictor, pixels):
    pose_cfg.MODEL.POSE.OKS_NMS_THRESH = 0.9
    twice = np.column_stack((BOXES[[0, 0]], [0.5, 0.9]))
    (kept,) = make_predictor(pose_cfg)(pixels(), twice).objects
    assert kept.box_score == pytest.approx(0.9)


def test_persons_that_another_predictor_finds(pose_cfg, random_weights, pixels, people):
    predictor = proscale.Predictor(pose_cfg, random_weights(pose_cfg), persons=people)
    (person,) = predictor(pixels()).objects  # the dog is none
    assert person.box == (4, 6, 20, 20) and person.box_score == pytest.approx(0.9)
    # Boxes that are given come first.
    assert len(predictor(pixels(), BOXES).objects) == 3


def test_what_finds_persons_has_to_know_them(pose_cfg, random_weights, people, classes):
    weights = random_weights(pose_cfg)
    people.classes = classes
    with pytest.raises(ConfigError, match=r'has the classes .*"cat".*: expected person'):
        proscale.Predictor(pose_cfg, weights, persons=people)
    people.task = "semantic"
    with pytest.raises(ConfigError, match="persons is semantic: expected panoptic, instance, det"):
        proscale.Predictor(pose_cfg, weights, persons=people)


def test_boxes_have_to_come_from_somewhere(pose_cfg, make_predictor, pixels):
    with pytest.raises(ConfigError, match="boxes of persons are missing: expected boxes, or"):
        make_predictor(pose_cfg)(pixels())


def test_other_models_take_none(mask_cfg, make_predictor, people, pixels):
    with pytest.raises(ConfigError, match="persons are for pose estimators: the task is panoptic"):
        make_predictor(mask_cfg, persons=people)
    with pytest.raises(ValueError, match="boxes are for pose estimators: the task is panoptic"):
        make_predictor(mask_cfg)(pixels(), BOXES)


def test_keypoints_are_those_of_the_data_set(pose_cfg, random_weights):
    weights = random_weights(pose_cfg)
    pose_cfg.DATASETS.TEST = ("keypoints_jbd_val",)
    with pytest.raises(ConfigError, match=r"NUM_KEYPOINTS is 17: expected 20, the keypoints for"):
        proscale.Predictor(pose_cfg, weights)
    pose_cfg.DATASETS.TEST = ("coco_2017_val_panoptic",)
    with pytest.raises(ConfigError, match="expected a data set with keypoint_names"):
        proscale.Predictor(pose_cfg, weights)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (BOXES[0], r"shape \(4,\): expected \(N, 4\) or \(N, 5\)"),
        (BOXES[:, :3], r"shape \(3, 3\)"),
        (np.ones((MAX_PERSONS + 1, 4)), f"N at most {MAX_PERSONS}"),
        ([[0, 0, np.nan, 5]], "a box is .*nan.*: expected x0 < x1"),
        ([[0, 0, np.inf, 5]], "inf"),
        ([[0, 0, 1e7, 5]], "within 1000000 pixels"),
        ([[5, 0, 5, 5]], "x0 < x1"),
        ([[0, 0, 5, 5, 1.5]], "a score from 0 to 1"),
    ],
)
def test_other_boxes_are_refused(boxes, message):
    with pytest.raises(ValueError, match=message):
        check_boxes(boxes)


def test_boxes_of_a_file(tmp_path):
    path = tmp_path / "boxes.json"
    some = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    path.write_text(json.dumps([some, some | {"category_id": 2}, some | {"image_id": "a"}]))
    found = read_boxes(path, [1])
    assert found.keys() == {7, "a"}
    assert found[7].tolist() == [[1, 2, 4, 6, 0.5]]
    for wrong, message in (
        ({"bbox": [1, 2, 0, 4]}, "boxes.json: image_id 7: a box is .*: expected x0 < x1"),
        ({"bbox": [1, 2, 3]}, r"boxes.json.*bbox.*expected \[x, y, width, height\]"),
        ({"score": None}, "score"),
        ({"image_id": 1.5}, "image_id"),
    ):
        path.write_text(json.dumps([some | wrong]))
        with pytest.raises(DataError, match=message):
            read_boxes(path, [1])
    path.write_text(json.dumps([some] * (MAX_PERSONS + 1)))
    with pytest.raises(DataError, match=f"at most {MAX_PERSONS}"):
        read_boxes(path, [1])


def test_boxes_of_segments(panoptic):
    found = boxes_of(panoptic, ["cat"])
    assert found.tolist() == [[4, 4, 20, 20, 0.8], [30, 10, 44, 40, 0.7]]
