"""ADE20K's annotations from label and instance images."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from proscale.data import build_mapper
from proscale.data.datasets.ade20k import THINGS, register_ade20k
from proscale.data.formats.image_file import read_label_image, read_panoptic_png
from proscale.data.prepare import prepare

NAME = "ADE_val_00000001"
WALL, BED, PERSON = 1, 8, 13
# The instance challenge's categories of the things.
BED_CATEGORY, PERSON_CATEGORY = THINGS.index(BED - 1) + 1, THINGS.index(PERSON - 1) + 1


def write(root: Path, labels: np.ndarray, objects: dict[int, tuple[int, slice]]) -> None:
    folder = root / "ADEChallengeData2016"
    instances = np.zeros((*labels.shape, 3), np.uint8)
    for number, (category, columns) in objects.items():
        instances[1:, columns] = category, number, 0
    for name, pixels, suffix in (
        ("images", instances, "jpg"),
        ("annotations", labels, "png"),
        ("annotations_instance", instances, "png"),
    ):
        (folder / name / "validation").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / "validation" / f"{NAME}.{suffix}")


@pytest.fixture
def root(tmp_path, restored_catalogs) -> Path:
    """Two persons and a bed before a wall; a part of the bed belongs to no object."""
    labels = np.full((4, 12), WALL, np.uint8)
    labels[1:, 2:8], labels[1:, 8:] = PERSON, BED
    labels[3] = 0
    objects = {
        1: (PERSON_CATEGORY, slice(2, 5)),
        2: (PERSON_CATEGORY, slice(5, 8)),
        3: (BED_CATEGORY, slice(8, 10)),
    }
    write(tmp_path, labels, objects)
    register_ade20k(tmp_path)
    return tmp_path


def test_semantic_labels_start_at_zero(root):
    prepare("ade20k-semantic", root, workers=1)
    (entry,) = DatasetCatalog.get("ade20k_sem_seg_val")
    labels = read_label_image(entry["sem_seg_file_name"])
    assert labels.dtype == np.uint8
    assert np.unique(labels).tolist() == [WALL - 1, BED - 1, PERSON - 1, 255]
    assert (labels[3] == 255).all()


def test_panoptic_segments(root):
    prepare("ade20k-panoptic", root, workers=1)
    (entry,) = DatasetCatalog.get("ade20k_panoptic_val")
    assert Path(entry["file_name"]).is_file()
    assert entry["image_id"] == NAME
    segments = {s["id"]: s for s in entry["segments_info"]}
    ids = read_panoptic_png(entry["pan_seg_file_name"])
    assert set(np.unique(ids).tolist()) == {0, *segments}
    areas = sorted((s["category_id"], s["isthing"], s["area"]) for s in segments.values())
    assert areas == [
        (WALL - 1, False, 12 + 2 * 2),
        (BED - 1, True, 3 * 2),
        (PERSON - 1, True, 3 * 3),
        (PERSON - 1, True, 3 * 3),
    ]
    for id_, segment in segments.items():
        assert segment["area"] == (ids == id_).sum()
        x, y, width, height = segment["bbox"]
        assert (ids[y : y + height, x : x + width] == id_).any()
    assert (ids[1:, 10:] == 0).all()  # bed without an object
    assert (ids[3, :2] == 0).all()  # no label


def test_instances(root):
    prepare("ade20k-instance", root, workers=1)
    (entry,) = DatasetCatalog.get("ade20k_instance_val")
    assert [a["category_id"] for a in entry["annotations"]] == [
        BED_CATEGORY - 1,
        PERSON_CATEGORY - 1,
        PERSON_CATEGORY - 1,
    ]
    masks = [pycocotools.mask.decode(a["segmentation"]) for a in entry["annotations"]]
    assert [int(mask.sum()) for mask in masks] == [6, 9, 9]
    content = json.loads((root / "ADEChallengeData2016/ade20k_instance_val.json").read_text())
    assert len(content["categories"]) == 100
    assert content["annotations"][0]["bbox"] == [8, 1, 2, 3]


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_what_is_prepared_trains(root, cfg, task):
    prepare("ade20k", root, workers=2)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 150
    cfg.INPUT.DATASET_MAPPER_NAME = f"mask_former_{task}"
    name = {"semantic": "sem_seg"}.get(task, task)
    (entry,) = DatasetCatalog.get(f"ade20k_{name}_val")
    sample = build_mapper(cfg, is_train=True)(entry)
    assert len(sample["instances"]) == {"semantic": 3, "panoptic": 4, "instance": 3}[task]


def test_a_second_call_makes_nothing(root):
    assert [tally.made for tally in prepare("ade20k", root, workers=1)] == [1, 1, 1]
    assert [tally.made for tally in prepare("ade20k", root, workers=1)] == [0, 0, 0]


def test_faults_are_named(root, tmp_path):
    labels = np.full((4, 12), WALL, np.uint8)
    write(root, labels, {1: (101, slice(0, 2))})
    with pytest.raises(ValueError, match=rf"{NAME}\.png: instance 1 has category 101"):
        prepare("ade20k-instance", root, workers=1)
    write(root, labels, {1: (1, slice(0, 2))})
    path = root / "ADEChallengeData2016/annotations_instance/validation" / f"{NAME}.png"
    pixels = np.array(Image.open(path))
    pixels[0, 5] = 2, 1, 0
    Image.fromarray(pixels).save(path)
    with pytest.raises(ValueError, match=rf"{NAME}\.png: instance 1 has several categories"):
        prepare("ade20k-panoptic", root, workers=1)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"annotations_instance/validation.*\.tar"):
        prepare("ade20k-panoptic", root, workers=1)
    write(root, np.full((4, 12), 151, np.uint8), {})
    with pytest.raises(ValueError, match=rf"{NAME}\.png: it has the label 151: expected 0 to"):
        prepare("ade20k-semantic", root, workers=1)
    with pytest.raises(FileNotFoundError, match=r"no \*\.png in .*annotations/training"):
        prepare("ade20k-semantic", tmp_path / "elsewhere", workers=1)
