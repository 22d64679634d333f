"""Cityscapes' preparation gives what `cityscapesscripts` gives."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from proscale.data import build_mapper
from proscale.data.datasets.cityscapes import register_cityscapes
from proscale.data.formats.image_file import read_label_image
from proscale.data.prepare import prepare
from proscale.errors import UserError

ROAD, CAR, EGO_VEHICLE, PERSON = 7, 26, 1, 24
NAME = "aachen_000000_000019"


@pytest.fixture
def root(tmp_path, restored_catalogs) -> Path:
    pytest.importorskip("cityscapesscripts")
    ids = np.full((20, 30), ROAD, np.uint16)
    ids[:5, :5], ids[10:15, 10:20], ids[15:, 25:], ids[18:] = 26000, 24001, 24, EGO_VEHICLE
    labels = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
    city = tmp_path / "cityscapes/gtFine/val/aachen"
    images = tmp_path / "cityscapes/leftImg8bit/val/aachen"
    for folder in (city, images):
        folder.mkdir(parents=True)
    Image.fromarray(ids).save(city / f"{NAME}_gtFine_instanceIds.png")
    Image.fromarray(labels).save(city / f"{NAME}_gtFine_labelIds.png")
    Image.new("RGB", (30, 20)).save(images / f"{NAME}_leftImg8bit.png")
    register_cityscapes(tmp_path)
    return tmp_path


def assert_as_cityscapesscripts(root: Path, split: str, tmp_path: Path) -> None:
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    folder = root / "cityscapes" / "gtFine"
    convert2panoptic(str(folder), str(theirs), useTrainId=False, setNames=[split])
    name = f"cityscapes_panoptic_{split}"
    ours = json.loads((folder / f"{name}.json").read_text())
    assert ours == json.loads((theirs / f"{name}.json").read_text())
    for annotation in ours["annotations"]:
        files = [base / name / annotation["file_name"] for base in (folder, theirs)]
        ours_png, theirs_png = (np.asarray(Image.open(file)) for file in files)
        assert np.array_equal(ours_png, theirs_png)


def test_panoptic_is_that_of_cityscapesscripts(root, tmp_path):
    prepare("cityscapes-panoptic", root, workers=1)
    assert_as_cityscapesscripts(root, "val", tmp_path)


def test_labels_are_train_ids(root):
    prepare("cityscapes-semantic", root, workers=1)
    (entry,) = DatasetCatalog.get("cityscapes_fine_sem_seg_val")
    labels = read_label_image(entry["sem_seg_file_name"])
    assert labels[8, 0] == 0 and labels[0, 0] == 13 and labels[12, 12] == 11
    assert (labels[18:] == 255).all()
    assert (entry["height"], entry["width"]) == (20, 30)


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_what_is_prepared_trains(root, cfg, task):
    prepare("cityscapes", root, workers=1)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.INPUT.DATASET_MAPPER_NAME = f"mask_former_{task}"
    name = {"semantic": "sem_seg", "instance": "instance_seg"}.get(task, task)
    (entry,) = DatasetCatalog.get(f"cityscapes_fine_{name}_val")
    instances = build_mapper(cfg, is_train=True)(entry)["instances"]
    classes = {"semantic": [0, 11, 13], "panoptic": [0, 11, 13], "instance": [0, 2]}[task]
    assert sorted(instances.gt_classes.tolist()) == classes


def test_unknown_labels_are_named(root):
    city = root / "cityscapes/gtFine/val/aachen"
    Image.fromarray(np.full((2, 2), 77, np.uint8)).save(city / f"{NAME}_gtFine_labelIds.png")
    with pytest.raises(ValueError, match=rf"{NAME}_gtFine_labelIds\.png: ids \[77\]"):
        prepare("cityscapes-semantic", root, workers=1)
    ids = np.full((2, 2), 61001, np.uint16)
    Image.fromarray(ids).save(city / f"{NAME}_gtFine_instanceIds.png")
    with pytest.raises(ValueError, match=rf"{NAME}_gtFine_instanceIds\.png: id"):
        prepare("cityscapes-panoptic", root, workers=1)


def test_missing_package_and_files_are_named(root, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no \*/\*_gtFine_labelIds\.png in .*gtFine"):
        prepare("cityscapes", tmp_path / "elsewhere", workers=1)
    monkeypatch.setitem(sys.modules, "cityscapesscripts.helpers.labels", None)
    with pytest.raises(UserError, match=r"pip install 'proscale\[cityscapes\]'"):
        prepare("cityscapes", root, workers=1)


def test_real_frames(sample_coco, tmp_path, restored_catalogs):
    pytest.importorskip("cityscapesscripts")
    sample = Path(os.environ["DETECTRON2_DATASETS"]) / "cityscapes"
    if not (sample / "gtFine/val").is_dir():
        pytest.skip(f"no Cityscapes frames in {sample}")
    copy = tmp_path / "root" / "cityscapes" / "gtFine" / "val" / "aachen"
    copy.mkdir(parents=True)
    for file in (sample / "gtFine/val/aachen").iterdir():
        (copy / file.name).symlink_to(file)
    prepare("cityscapes", tmp_path / "root", workers=2)
    assert_as_cityscapesscripts(tmp_path / "root", "val", tmp_path)
