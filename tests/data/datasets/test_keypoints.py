"""Data sets of poses: COCO's names, the jump broadcast data set's, and what their files need."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import create_keypoint_hflip_indices

from proscale.data.datasets.coco import register_coco
from proscale.data.datasets.jbd import register_jbd
from proscale.data.formats.coco_format import check_skeleton
from proscale.errors import DataError

FLIPPED = {
    "keypoints_coco_2017_train": [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15],
    "keypoints_jbd_val": [0, 1, 6, 7, 8, 9, 2, 3, 4, 5, 15, 16, 17, 18, 19, 10, 11, 12, 13, 14],
}


@pytest.mark.parametrize("name", FLIPPED)
def test_skeletons(name):
    metadata = MetadataCatalog.get(name)
    assert create_keypoint_hflip_indices([name]) == FLIPPED[name]
    names = metadata.keypoint_names
    assert len(names) == len(metadata.keypoint_oks_sigmas) == len(FLIPPED[name])
    assert len(metadata.keypoint_connection_rules) == 19
    assert {end for *ends, _ in metadata.keypoint_connection_rules for end in ends} <= set(names)
    left, right = metadata.keypoint_flip_map[0]
    assert (left[0], right[0]) == ("l", "r")
    # Left and right have colours of their own.
    colors = {frozenset(ends): color for *ends, color in metadata.keypoint_connection_rules}
    assert len(set(colors.values())) == 3


@pytest.fixture
def content():
    image = {"id": 5, "file_name": "5.jpg", "height": 40, "width": 50}
    person = {"id": 9, "image_id": 5, "category_id": 1, "iscrowd": 0, "bbox": [1, 2, 30, 20]}
    person |= {"keypoints": [7, 8, 2] + [0] * 48, "num_keypoints": 1, "area": 300.5}
    category = {"id": 1, "name": "person", "keypoints": ["nose"], "skeleton": []}
    return {"images": [image], "annotations": [person], "categories": [category]}


@pytest.fixture
def load(tmp_path, restored_catalogs):
    def load(content):
        folder = tmp_path / "coco" / "annotations"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "person_keypoints_val2017.json").write_text(json.dumps(content))
        register_coco(tmp_path)
        return DatasetCatalog.get("keypoints_coco_2017_val")

    return load


def test_entries_have_detectron2s_coordinates(load, content):
    (entry,) = load(content)
    (person,) = entry["annotations"]
    # Half a pixel more than in the file; boxes are the same, and so is visibility.
    assert person["keypoints"][:6] == [7.5, 8.5, 2, 0.5, 0.5, 0]
    assert person["bbox"] == [1, 2, 30, 20]
    assert (person["id"], person["category_id"], person["num_keypoints"]) == (9, 0, 1)
    assert "segmentation" not in person


@pytest.mark.parametrize("keypoints", [None, []])
def test_persons_may_be_without_keypoints(load, content, keypoints):
    if keypoints is None:
        del content["annotations"][0]["keypoints"]
    else:
        content["annotations"][0]["keypoints"] = keypoints
    assert "keypoints" not in load(content)[0]["annotations"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": [1, 2, 2]}, r"annotation 9 has 3 numbers as keypoints: .* 17 keypoints"),
        ({"keypoints": [1, 2, 7] + [0] * 48}, "annotation 9 has 51 .*visibility 0, 1 or 2"),
        ({"keypoints": [1, 2, "a"]}, r"annotations\[0\]\.keypoints is .*a list of numbers"),
        ({"num_keypoints": None}, r"annotations\[0\]\.num_keypoints is null"),
        ({"bbox": [1, 2]}, r"annotations\[0\]\.bbox is \[1, 2\]: expected \[x, y, width"),
        ({"category_id": 2}, "annotation 9 of image 5 has category_id 2: expected 1"),
    ],
)
def test_faults_name_the_annotation(load, content, change, message):
    content["annotations"][0] |= change
    with pytest.raises(DataError, match=rf"person_keypoints_val2017\.json: .*{message}"):
        load(content)


def test_missing_files_are_named(tmp_path, restored_catalogs):
    register_jbd(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"val_jump\.json.*`proscale prepare jbd --root"):
        DatasetCatalog.get("keypoints_jbd_val")


CATEGORY = {"id": 1, "name": "dog", "keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}


def test_a_skeleton_is_read_from_its_category():
    content = {"categories": [CATEGORY, {"id": 2, "name": "ball"}]}
    assert check_skeleton(content, "a.json") == (CATEGORY, ["nose", "tail"], [(0, 1)])


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 2, "name": "ball"}], "0 of its categories have keypoints: expected one"),
        ([CATEGORY, {**CATEGORY, "id": 2, "name": "cat"}], "2 of its categories have keypoints"),
        ([{**CATEGORY, "keypoints": []}], r"category 1\.keypoints is \[\]"),
        ([{**CATEGORY, "keypoints": ["a", 3]}], r"category 1\.keypoints is .*a list of names"),
        ([{**CATEGORY, "keypoints": ["a", "a"]}], r"keypoints\[1\]: name 'a' is there twice"),
        ([{**CATEGORY, "skeleton": [[0, 1]]}], r"skeleton is \[\[0, 1\]\]: .* from 1 to 2"),
        ([{**CATEGORY, "skeleton": [[1, 3]]}], r"skeleton is \[\[1, 3\]\]"),
        ([{**CATEGORY, "skeleton": 5}], r"skeleton is 5: expected a list of \[i, j\]"),
    ],
)
def test_unusable_skeletons_are_named(categories, message):
    with pytest.raises(DataError, match=rf"a\.json: .*{message}"):
        check_skeleton({"categories": categories}, "a.json")
