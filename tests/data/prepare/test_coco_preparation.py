"""COCO's label images follow from its panoptic annotations."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from proscale.data.datasets.coco import register_coco
from proscale.data.formats.image_file import read_label_image, write_panoptic_png
from proscale.data.prepare import prepare

PERSON, BANNER, PAPER = 1, 92, 200


def segments(*pairs: tuple[int, int]) -> list[dict]:
    return [{"id": id_, "category_id": category} for id_, category in pairs]


@pytest.fixture
def root(tmp_path) -> Path:
    coco = tmp_path / "coco"
    for name in ("annotations", "panoptic_val2017"):
        (coco / name).mkdir(parents=True)
    ids = np.array([[70000, 70000, 9], [0, 12, 12]])
    write_panoptic_png(coco / "panoptic_val2017/1.png", ids)
    write(coco, segments((70000, PERSON), (9, BANNER), (12, PAPER)))
    return tmp_path


def write(coco: Path, infos: list[dict]) -> None:
    annotations = [{"image_id": 1, "file_name": "1.png", "segments_info": infos}]
    path = coco / "annotations" / "panoptic_val2017.json"
    path.write_text(json.dumps({"annotations": annotations}))


def test_semantic_and_stuff_labels(root):
    tallies = prepare("coco", root, workers=1)
    assert [(t.target.name, t.made) for t in tallies] == [
        ("panoptic_semseg_val2017", 1),
        ("panoptic_stuff_val2017", 1),
    ]
    semantic = read_label_image(root / "coco/panoptic_semseg_val2017/1.png")
    assert semantic.tolist() == [[0, 0, 80], [255, 132, 132]]
    stuff = read_label_image(root / "coco/panoptic_stuff_val2017/1.png")
    assert stuff.tolist() == [[0, 0, 1], [255, 53, 53]]
    assert all(tally.made == 0 for tally in prepare("coco", root, workers=1))


def test_faults_name_file_and_segment(root):
    write(root / "coco", segments((70000, PERSON), (9, BANNER)))
    with pytest.raises(
        ValueError, match=r"1\.png: ids \[12\]: expected .* in .*panoptic_val2017\.json"
    ):
        prepare("coco-semantic", root, workers=1)
    write(root / "coco", segments((70000, 12), (9, BANNER), (12, PAPER)))
    with pytest.raises(ValueError, match=r"panoptic_val2017\.json: .*categories \[12\]"):
        prepare("coco-semantic", root, workers=1)


def test_missing_annotations_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"panoptic_train2017\.json, .*val2017\.json"):
        prepare("coco-stuff", tmp_path, workers=1)


def test_real_labels_are_those_of_the_panoptic_names(sample_coco, tmp_path, restored_catalogs):
    annotations = tmp_path / "coco" / "annotations"
    annotations.mkdir(parents=True)
    for name in ("annotations/panoptic_val2017.json", "panoptic_val2017", "val2017"):
        (tmp_path / "coco" / name).symlink_to(sample_coco / name)
    prepare("coco-semantic", tmp_path, workers=2)
    register_coco(tmp_path)
    labelled = {
        Path(entry["file_name"]).name: entry["sem_seg_file_name"]
        for entry in DatasetCatalog.get("coco_2017_val_sem_seg")
    }
    panoptic = DatasetCatalog.get("coco_2017_val_panoptic")
    assert len(labelled) == len(panoptic)
    for entry in panoptic[:10]:
        labels = read_label_image(labelled[Path(entry["file_name"]).name])
        areas = Counter()
        for segment in entry["segments_info"]:
            areas[segment["category_id"]] += segment["area"]
        classes, counts = np.unique(labels[labels != 255], return_counts=True)
        assert dict(zip(classes.tolist(), counts.tolist(), strict=True)) == areas
