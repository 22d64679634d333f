"""Mapillary Vistas: classes come from its configuration file, in both releases' layouts."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from proscale.data.datasets.mapillary import read_classes, register_mapillary
from proscale.data.formats.image_file import write_panoptic_png

LABELS = [
    {"readable": "Bird", "instances": True, "evaluate": True, "color": [165, 42, 42]},
    {"readable": "Road", "instances": False, "evaluate": True, "color": [128, 64, 128]},
    {"readable": "Car", "instances": True, "evaluate": True, "color": [0, 0, 142]},
    {"readable": "Unlabeled", "instances": False, "evaluate": False, "color": [0, 0, 0]},
]


@pytest.fixture(params=[("config_v1.2.json", "v1.2"), ("config.json", "")])
def root(request, tmp_path, restored_catalogs) -> Path:
    config, version = request.param
    folder = tmp_path / "mapillary_vistas"
    annotations = folder / "validation" / version
    for name in (folder / "validation/images", annotations / "labels", annotations / "panoptic"):
        name.mkdir(parents=True)
    (folder / config).write_text(json.dumps({"labels": LABELS}))
    labels = np.array([[1, 1, 2], [3, 0, 2]], np.uint8)
    Image.new("RGB", (3, 2)).save(folder / "validation/images/a.jpg")
    Image.fromarray(labels).save(annotations / "labels/a.png")
    write_panoptic_png(annotations / "panoptic/a.png", labels.astype(int) * 7)
    segments = [{"id": 7, "category_id": 2}, {"id": 14, "category_id": 3}]
    (annotations / "panoptic/panoptic_2018.json").write_text(
        json.dumps(
            {
                "images": [{"id": "a", "file_name": "a.jpg", "height": 2, "width": 3}],
                "annotations": [{"image_id": "a", "file_name": "a.png", "segments_info": segments}],
            }
        )
    )
    return tmp_path


def test_semantic_classes_and_entries(root):
    register_mapillary(root)
    metadata = MetadataCatalog.get("mapillary_vistas_sem_seg_val")
    assert metadata.stuff_classes == ["Bird", "Road", "Car"]
    assert metadata.stuff_colors[0] == [165, 42, 42]
    assert metadata.ignore_label == 3
    (entry,) = DatasetCatalog.get("mapillary_vistas_sem_seg_val")
    assert Path(entry["file_name"]).is_file()
    assert Path(entry["sem_seg_file_name"]).is_file()


def test_panoptic_classes_keep_the_order_of_the_file(root):
    register_mapillary(root)
    metadata = MetadataCatalog.get("mapillary_vistas_panoptic_val")
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 3: 2}
    assert metadata.stuff_dataset_id_to_contiguous_id == {2: 1}
    assert metadata.evaluator_type == "mapillary_vistas_panoptic_seg"
    (entry,) = DatasetCatalog.get("mapillary_vistas_panoptic_val")
    assert [s["category_id"] for s in entry["segments_info"]] == [1, 2]
    assert Path(entry["pan_seg_file_name"]).is_file()


def test_without_the_file_only_classes_are_missing(tmp_path, restored_catalogs):
    register_mapillary(tmp_path)
    metadata = MetadataCatalog.get("mapillary_vistas_sem_seg_train")
    assert metadata.evaluator_type == "sem_seg"
    assert metadata.get("thing_dataset_id_to_contiguous_id") is None
    with pytest.raises(
        FileNotFoundError, match=r"no config_v1\.2\.json or config\.json in .*vistas"
    ):
        _ = metadata.stuff_classes


@pytest.mark.parametrize("content", ["{}", "no JSON", json.dumps({"labels": LABELS[::-1]})])
def test_other_configuration_files_are_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: "):
        read_classes(tmp_path)
