"""Images are split into persons: who is one, and what a detector found."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from proscale.data.datasets.coco import register_coco
from proscale.data.persons import clipped_box, detected_records, person_records
from proscale.errors import DataError

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
def sample_persons(tmp_path, restored_catalogs):
    """``$DETECTRON2_DATASETS/coco_person``, laid out as COCO, under the names of COCO."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).resolve() / "coco_person"
    if not root.is_dir():
        pytest.skip(f"there is no {root}; point DETECTRON2_DATASETS at sample data")
    (tmp_path / "coco").symlink_to(root)
    register_coco(tmp_path)


@pytest.mark.parametrize(
    ("split", "annotations", "persons", "images", "labelled", "many"),
    [("train", 99, 57, 25, 573, 35), ("val", 127, 46, 17, 468, 30)],
)
def test_sample_persons(sample_persons, split, annotations, persons, images, labelled, many):
    entries = DatasetCatalog.get(f"keypoints_coco_2017_{split}")
    assert sum(len(entry["annotations"]) for entry in entries) == annotations
    records = person_records(entries)
    assert (len(records), len({r["image_id"] for r in records})) == (persons, images)
    counts = [
        (np.reshape(r["annotations"][0]["keypoints"], (-1, 3))[:, 2] > 0).sum() for r in records
    ]
    assert sum(counts) == labelled
    assert sum(count >= 9 for count in counts) == many
