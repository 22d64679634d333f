"""Instance annotations: entries, and what is refused."""

import json

import pytest
from detectron2.data import MetadataCatalog

from proscale.data.datasets.own import register_own_data
from proscale.data.datasets.registration import instance_metadata
from proscale.data.formats.coco_format import load_coco_instances


@pytest.fixture
def content() -> dict:
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    return {
        "images": [
            {"id": 4, "file_name": "four.jpg", "height": 8, "width": 9},
            {"id": 2, "file_name": "two.jpg", "height": 6, "width": 7},
        ],
        "annotations": [
            {
                "id": 10,
                "image_id": 4,
                "category_id": 7,
                "bbox": [1, 1, 4, 4],
                "segmentation": square,
            },
            {"id": 11, "image_id": 4, "category_id": 3, "iscrowd": 1, "segmentation": square},
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


@pytest.fixture
def load(content, tmp_path):
    """Returns a function that loads ``content``."""
    path = tmp_path / "instances.json"

    def load():
        path.write_text(json.dumps(content))
        metadata = instance_metadata(content["categories"], image_root="images", json_file=path)
        return load_coco_instances(metadata)

    return load


def test_classes_are_in_the_order_of_their_ids(content):
    metadata = instance_metadata(content["categories"], image_root="i", json_file="j")
    assert metadata["thing_classes"] == ["cat", "dog"]
    assert metadata["thing_dataset_id_to_contiguous_id"] == {3: 0, 7: 1}
    assert "thing_colors" not in metadata


def test_entries(load):
    empty, entry = load()
    assert (empty["image_id"], empty["annotations"]) == (2, [])
    assert entry["file_name"] == "images/four.jpg"
    assert (entry["height"], entry["width"]) == (8, 9)
    first, second = entry["annotations"]
    assert (first["category_id"], first["iscrowd"], first["bbox"]) == (1, 0, [1, 1, 4, 4])
    assert (second["category_id"], second["iscrowd"]) == (0, 1)
    assert "bbox" not in second


def test_annotation_without_image(content, load):
    content["annotations"][1]["image_id"] = 5
    with pytest.raises(
        ValueError, match=r"instances\.json: annotations\[1\] is for image 5, which is not"
    ):
        load()


def test_unknown_category(content, load):
    content["annotations"][0]["category_id"] = 8
    with pytest.raises(ValueError, match=r"annotation 10 of image 4 has .* 8: expected 3, 7$"):
        load()


@pytest.mark.parametrize("color", ["#b92d2d", [0, 0, 256], [0, 0], [0, 0, "1"], None, 7])
@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_other_colours_are_left_out(own_data, own_block, restored_catalogs, task, color):
    for path in (own_data / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        content["categories"][0]["color"] = color
        path.write_text(json.dumps(content))
    register_own_data([own_block(task)])
    assert MetadataCatalog.get(f"own_{task}_train").get("thing_colors") is None
