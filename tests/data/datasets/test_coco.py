"""Registration of data sets in COCO's panoptic format: classes, entries, restrictions, errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.visualizer import Visualizer

from proscale.data import register_coco_panoptic
from proscale.data.datasets.coco import register_coco
from proscale.data.datasets.registration import panoptic_metadata, register
from proscale.data.formats.coco_format import load_coco_panoptic

# Stuff comes first in the file, and ids have gaps.
CATEGORIES = [
    {"id": 7, "name": "sky", "isthing": 0, "color": [0, 0, 255]},
    {"id": 3, "name": "dog", "isthing": 1, "color": [255, 0, 0]},
    {"id": 9, "name": "grass", "isthing": 0, "color": [0, 255, 0]},
    {"id": 5, "name": "cat", "isthing": 1, "color": [255, 255, 0]},
]


def segment(id_: int, category_id: int) -> dict:
    return {"id": id_, "category_id": category_id, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1}


@pytest.fixture
def content() -> dict:
    return {
        "images": [
            {"id": 2, "file_name": "two.jpeg", "height": 20, "width": 30},
            {"id": 1, "file_name": "one.jpg", "height": 10, "width": 15},
        ],
        "annotations": [
            {"image_id": 1, "file_name": "1.png", "segments_info": [segment(4, 9), segment(5, 5)]},
            {"image_id": 2, "file_name": "2.png", "segments_info": [segment(6, 3)]},
        ],
        "categories": CATEGORIES,
    }


@pytest.fixture
def new_name():
    """A name that is free, and free again afterwards."""
    name = "test_registration_shapes"
    yield name
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def files(tmp_path: Path, content: dict) -> dict:
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    return {
        "image_root": tmp_path / "images",
        "panoptic_root": tmp_path / "png",
        "panoptic_json": path,
    }


def test_things_get_the_first_contiguous_ids(tmp_path, content, new_name):
    register_coco_panoptic(new_name, **files(tmp_path, content), instances_json="instances.json")
    metadata = MetadataCatalog.get(new_name)
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 5: 1}
    assert metadata.stuff_dataset_id_to_contiguous_id == {7: 2, 9: 3}
    assert metadata.thing_classes == metadata.stuff_classes == ["dog", "cat", "sky", "grass"]
    assert metadata.thing_colors[0] == [255, 0, 0]
    assert metadata.stuff_colors[3] == [0, 255, 0]
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.ignore_label == 255
    assert metadata.label_divisor == 1000
    assert metadata.json_file == "instances.json"


def test_entries_join_images_and_annotations_by_id(tmp_path, content, new_name):
    register_coco_panoptic(new_name, **files(tmp_path, content))
    first, second = DatasetCatalog.get(new_name)
    assert first == {
        "file_name": str(tmp_path / "images/one.jpg"),
        "height": 10,
        "width": 15,
        "image_id": 1,
        "pan_seg_file_name": str(tmp_path / "png/1.png"),
        "segments_info": [
            {**segment(4, 3), "isthing": False},
            {**segment(5, 1), "isthing": True},
        ],
    }
    assert second["file_name"] == str(tmp_path / "images/two.jpeg")
    assert (second["height"], second["width"]) == (20, 30)
    assert second["segments_info"] == [{**segment(6, 0), "isthing": True}]


def test_json_file_is_absent_without_instances(tmp_path, content, new_name):
    register_coco_panoptic(new_name, **files(tmp_path, content))
    assert "json_file" not in MetadataCatalog.get(new_name).as_dict()


def test_detectron2_can_draw_with_the_metadata(tmp_path, content, new_name):
    register_coco_panoptic(new_name, **files(tmp_path, content))
    ids = torch.tensor([[1] * 20] * 10 + [[2] * 20] * 10)
    segments = [
        {"id": 1, "category_id": 1, "isthing": True},
        {"id": 2, "category_id": 3, "isthing": False},
    ]
    visualizer = Visualizer(np.zeros((20, 20, 3), np.uint8), MetadataCatalog.get(new_name))
    assert visualizer.draw_panoptic_seg(ids, segments).get_image().any()


def test_registering_again_is_harmless_but_a_name_means_one_data_set(tmp_path, content, new_name):
    paths = files(tmp_path, content)
    register_coco_panoptic(new_name, **paths)
    register_coco_panoptic(new_name, **paths)
    assert len(DatasetCatalog.get(new_name)) == 2
    with pytest.raises(ValueError, match=f"{new_name} is already registered"):
        register_coco_panoptic(new_name, **{**paths, "image_root": tmp_path / "elsewhere"})


def test_image_ids_restrict_and_order(tmp_path, content, new_name):
    metadata = panoptic_metadata(CATEGORIES, **files(tmp_path, content))
    register(new_name, load_coco_panoptic, metadata | {"image_ids": (2,)})
    assert MetadataCatalog.get(new_name).image_ids == (2,)
    assert [entry["image_id"] for entry in DatasetCatalog.get(new_name)] == [2]
    both = load_coco_panoptic({**metadata, "image_ids": (2, 1)})
    assert [entry["image_id"] for entry in both] == [2, 1]
    with pytest.raises(ValueError, match=r"panoptic\.json: 1 of 2 images .* ids 8"):
        load_coco_panoptic({**metadata, "image_ids": (1, 8)})


def test_missing_file(tmp_path, content, new_name):
    paths = files(tmp_path, content)
    paths["panoptic_json"].unlink()
    with pytest.raises(FileNotFoundError, match=r"panoptic\.json"):
        register_coco_panoptic(new_name, **paths)


@pytest.mark.parametrize("ids", [[], [3, 3]])
def test_categories_must_be_there_once(tmp_path, content, new_name, ids):
    content["categories"] = [{"id": id_, "name": "dog", "isthing": 1} for id_ in ids]
    with pytest.raises(ValueError, match=r"panoptic\.json: categories"):
        register_coco_panoptic(new_name, **files(tmp_path, content))


def test_unknown_category_names_file_and_segment(tmp_path, content, new_name):
    content["annotations"][1]["segments_info"][0]["category_id"] = 4
    register_coco_panoptic(new_name, **files(tmp_path, content))
    with pytest.raises(ValueError, match=r"panoptic\.json: segment 6 of image 2 has category_id 4"):
        DatasetCatalog.get(new_name)


def test_annotation_without_image_is_refused(tmp_path, content, new_name):
    del content["images"][0]
    register_coco_panoptic(new_name, **files(tmp_path, content))
    with pytest.raises(ValueError, match="image 2, which is not among"):
        DatasetCatalog.get(new_name)


def test_coco_names_share_files_and_classes():
    register_coco()  # the package has done so already
    original = MetadataCatalog.get("coco_2017_val_panoptic").as_dict()
    published = MetadataCatalog.get("coco_2017_val_panoptic_with_sem_seg").as_dict()
    assert {**published, "name": original["name"]} == original
    assert len(MetadataCatalog.get("coco_2017_train_panoptic_8").image_ids) == 8


def test_eight_images_with_boxes(sample_coco):
    images = MetadataCatalog.get("coco_2017_train_panoptic_8").image_ids
    entries = DatasetCatalog.get("coco_2017_train_8")
    assert [entry["image_id"] for entry in entries] == list(images)
    assert sum(len(entry["annotations"]) for entry in entries) > 8


def test_coco_entries_are_those_of_detectron2(sample_coco):
    expected = DatasetCatalog.get("coco_2017_val_panoptic")
    entries = DatasetCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    by_id = {entry["image_id"]: entry for entry in entries}
    assert len(by_id) == len(expected)
    for other in expected:
        entry = by_id[other["image_id"]]
        assert {key: entry[key] for key in other} == other


def test_eight_coco_images_suit_their_purpose(sample_coco):
    entries = DatasetCatalog.get("coco_2017_train_panoptic_8")
    assert len(entries) == 8
    for entry in entries:
        assert Path(entry["file_name"]).is_file()
        assert (entry["height"], entry["width"]) == (480, 640)
        assert not any(s["iscrowd"] for s in entry["segments_info"])
        assert 4 <= len(entry["segments_info"]) <= 10
        assert min(s["area"] for s in entry["segments_info"]) > 1000


def test_importing_registers_and_reads_nothing(tmp_path):
    names = [f"coco_2017_{split}_panoptic_with_sem_seg" for split in ("train", "val")]
    for split in ("train", "val"):
        names += [f"coco_2017_{split}_sem_seg", f"coco_2017_{split}_panoptic_stuffonly"]
        names += [f"ade20k_{task}_{split}" for task in ("panoptic", "instance", "sem_seg")]
        names += [f"mapillary_vistas_{task}_{split}" for task in ("panoptic", "sem_seg")]
        names += [
            f"cityscapes_fine_{task}_{split}" for task in ("panoptic", "instance_seg", "sem_seg")
        ]
    check = (
        "import proscale.data; from detectron2.data import DatasetCatalog as catalog;"
        f"assert not set({names}) - set(catalog.list());"
        "assert 'coco_2017_train_panoptic_8' in catalog.list();"
        "assert 'shapes_train' in catalog.list() and 'shapes_val' in catalog.list()"
    )
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "absent")}
    subprocess.run([sys.executable, "-c", check], check=True, env=environment)
