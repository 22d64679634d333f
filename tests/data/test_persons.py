"""Images are split into persons: who is one, and what a detector found."""

import copy
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from proscale.config.schema import check_values
from proscale.data import build_mapper, build_training_loader
from proscale.data.datasets.own import register_own_data
from proscale.data.persons import (
    clipped_box,
    detected_records,
    evaluated_persons,
    person_records,
)
from proscale.engine.trainer import Trainer
from proscale.errors import ConfigError, DataError

KEYPOINTS = [0.5, 0.5, 0, 20.5, 30.5, 2, 40.5, 10.5, 1]


@pytest.fixture
def person():
    return {
        "id": 7,
        "category_id": 0,
        "iscrowd": 0,
        "bbox": [10, 5, 60, 40],
        "bbox_mode": BoxMode.XYWH_ABS,
        "keypoints": KEYPOINTS,
        "num_keypoints": 2,
    }


@pytest.fixture
def entry(person):
    names = {"file_name": "a.jpg", "image_id": 3, "height": 40, "width": 50}
    return {**names, "annotations": [person]}


def test_a_record_has_one_annotation_and_a_clipped_box(entry, person):
    entry["annotations"].append({**person, "id": 8, "bbox": [1, 2, 3, 4]})
    before = copy.deepcopy(entry)
    first, second = person_records([entry])
    assert entry == before
    (annotation,) = first["annotations"]
    assert [annotation["id"], second["annotations"][0]["id"]] == [7, 8]
    assert annotation["bbox"] == [10, 5, 49, 39]
    assert annotation["bbox_mode"] == BoxMode.XYXY_ABS
    assert annotation["keypoints"] == KEYPOINTS
    assert first["file_name"] == "a.jpg"
    assert first["image_id"] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"iscrowd": 1},
        {"num_keypoints": 0},
        {"keypoints": None},
        {"keypoints": []},
        {"bbox": [60, 5, 10, 10]},
        {"bbox": [10, 5, 0, 10]},
        {"keypoints": [0.5, 0.5, 2, -3.5, 0.5, 1, 0.5, 0.5, 0]},
    ],
)
def test_left_out(entry, person, change):
    assert len(person_records([entry])) == 1
    person |= change
    assert person_records([entry]) == []


def test_without_counts_labels_are_counted(entry, person):
    """Detectron2's loader leaves ids and counts out."""
    for key in ("id", "num_keypoints"):
        del person[key]
    assert len(person_records([entry])) == 1
    person["keypoints"] = [20.5, 30.5, 0] * 3
    assert person_records([entry]) == []


def test_no_box_is_no_person(entry, person):
    del person["bbox"]
    assert person_records([entry]) == []


def test_boxes_are_clipped_to_pixels():
    assert clipped_box([-5, -5, 100, 8], height=20, width=30) == [0, 0, 29, 3]


DETECTION = {"image_id": 3, "category_id": 1, "bbox": [-5, 1, 20, 30], "score": 0.8}


def write(tmp_path, content):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def test_detections_of_persons_become_records(entry, tmp_path):
    others = [{**DETECTION, "category_id": 2}, {**DETECTION, "score": 0.1}]
    records = detected_records([entry], write(tmp_path, [DETECTION, *others]), category_id=1)
    assert [record["annotations"][0]["score"] for record in records] == [0.8, 0.1]
    first = records[0]
    assert first["annotations"][0]["bbox"] == [-5, 1, 20, 30], "not clipped"
    assert first["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS
    assert first["annotations"][0].keys().isdisjoint(("id", "keypoints"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": []}, r"boxes\.json: it holds \{.*expected a list"),
        ([3], r"boxes\.json\[0\] is 3: expected an object"),
        ([{**DETECTION, "image_id": 4}], r"boxes\.json\[0\]\.image_id is 4: .*data set, 3"),
        ([{**DETECTION, "bbox": [0, 0, 5]}], r"\[0\]\.bbox is \[0, 0, 5\]: expected \[x, y,"),
        ([{**DETECTION, "bbox": [0, 0, 0, 9]}], r"\[0\]\.bbox is .* width and height above 0"),
        ([{**DETECTION, "score": "high"}], r"\[0\]\.score is \"high\": expected a number"),
        ([{k: v for k, v in DETECTION.items() if k != "score"}], r"\[0\] has no key 'score'"),
        ([{**DETECTION, "score": float("nan")}], "NaN is no JSON number"),
    ],
)
def test_wrong_detections_are_named(entry, tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        detected_records([entry], write(tmp_path, content), category_id=1)


@pytest.fixture
def own_persons(cfg, own_block):
    """A configuration of a pose estimator on the user's own data."""
    register_own_data([own_block("keypoints") | {"SIGMAS": [0.1] * 3}])
    cfg.MODEL.META_ARCHITECTURE = "PoseEstimator"
    cfg.MODEL.POSE_HEAD.NUM_KEYPOINTS = 3
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("own_keypoints_train",), ("own_keypoints_val",)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SEED, cfg.DATALOADER.NUM_WORKERS = 2, 0, 0
    return cfg


def test_a_pose_estimator_is_trained_with_persons(own_persons):
    loader = build_training_loader(own_persons, build_mapper(own_persons, is_train=True))
    entries = DatasetCatalog.get("own_keypoints_train")
    assert len(loader.dataset) == sum(len(entry["annotations"]) for entry in entries)
    batch = next(iter(loader))
    assert [sample["keypoints"].shape for sample in batch] == [(3, 2)] * 2


def test_a_pose_estimator_is_evaluated_with_persons(own_persons, tmp_path):
    """Annotated ones, or those that a detector found."""
    name = own_persons.DATASETS.TEST[0]
    entries = DatasetCatalog.get(name)
    samples = [person for batch in Trainer.build_test_loader(own_persons, name) for person in batch]
    ids = [annotation["id"] for entry in entries for annotation in entry["annotations"]]
    assert [sample["annotation_id"] for sample in samples] == ids
    image_id = entries[0]["image_id"]
    path = write(tmp_path, [{**DETECTION, "image_id": image_id, "score": 0.25}])
    own_persons.DATASETS.PERSON_BOXES_TEST = str(path)
    ((sample,),) = Trainer.build_test_loader(own_persons, name)
    assert sample["annotation_id"] is None
    assert sample["box"].tolist() == [-5, 1, 15, 31]
    assert sample["box_score"] == 0.25
    path.write_text("[]")
    with pytest.raises(DataError, match=r"boxes\.json has no persons: expected persons with a box"):
        evaluated_persons(own_persons, name)


@pytest.mark.parametrize(
    ("architecture", "datasets", "message"),
    [
        ("MaskFormer", ("a",), "PERSON_BOXES_TEST is .*: expected '' unless .* PoseEstimator"),
        ("PoseEstimator", ("a", "b"), "DATASETS.TEST is .*: expected one data set with DATASETS.P"),
    ],
)
def test_boxes_of_persons_are_for_one_data_set_of_poses(cfg, architecture, datasets, message):
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.DATASETS.PERSON_BOXES_TEST, cfg.DATASETS.TEST = "boxes.json", datasets
    with pytest.raises(ConfigError, match=message):
        check_values(cfg)


@pytest.mark.parametrize(
    ("split", "annotations", "persons", "images", "labelled", "many"),
    [
        ("train", 99, 57, 25, 573, 35),
        ("train_57", 97, 57, 25, 573, 35),
        ("val", 127, 46, 17, 468, 30),
    ],
)
def test_sample_persons(sample_persons, split, annotations, persons, images, labelled, many):
    records = sample_persons(split)
    entries = DatasetCatalog.get(f"keypoints_coco_2017_{split}")
    assert sum(len(entry["annotations"]) for entry in entries) == annotations
    assert (len(records), len({r["image_id"] for r in records})) == (persons, images)
    counts = [
        (np.reshape(r["annotations"][0]["keypoints"], (-1, 3))[:, 2] > 0).sum() for r in records
    ]
    assert sum(counts) == labelled
    assert sum(count >= 9 for count in counts) == many
