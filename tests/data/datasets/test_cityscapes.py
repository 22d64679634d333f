"""Cityscapes from its PNG files: instances, and faults that are named."""

from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_instances as detectron2_instances
from PIL import Image

from proscale.data.datasets.cityscapes import register_cityscapes

NAME = "aachen_000000_000019"


@pytest.fixture
def root(tmp_path, restored_catalogs) -> Path:
    folder = tmp_path / "cityscapes"
    images, labels = (folder / kind / "val" / "aachen" for kind in ("leftImg8bit", "gtFine"))
    for path in (images, labels):
        path.mkdir(parents=True)
    ids = np.full((20, 30), 7, np.uint16)  # road
    ids[:5, :5], ids[10:15, 10:20], ids[15:, 25:] = 26000, 24001, 33
    ids[0, 29] = 4  # static: has no instances
    Image.fromarray(ids).save(labels / f"{NAME}_gtFine_instanceIds.png")
    Image.new("RGB", (30, 20)).save(images / f"{NAME}_leftImg8bit.png")
    register_cityscapes(tmp_path)
    return tmp_path


def test_instances_are_those_of_the_instance_image(root):
    (entry,) = DatasetCatalog.get("cityscapes_fine_instance_seg_val")
    assert (entry["height"], entry["width"]) == (20, 30)
    assert entry["image_id"] == f"{NAME}_leftImg8bit.png"
    crowd, person, car = entry["annotations"]
    classes = MetadataCatalog.get("cityscapes_fine_instance_seg_val").thing_classes
    assert [classes[a["category_id"]] for a in (person, car, crowd)] == ["person", "car", "bicycle"]
    assert [a["iscrowd"] for a in (person, car, crowd)] == [0, 0, 1]
    assert person["bbox"] == [10, 10, 10, 5]
    assert pycocotools.mask.area(person["segmentation"]) == 50


def test_missing_labels_name_the_command(root):
    for task in ("sem_seg", "panoptic"):
        with pytest.raises(FileNotFoundError, match="`proscale prepare cityscapes --root"):
            DatasetCatalog.get(f"cityscapes_fine_{task}_val")


def test_missing_images_are_named(root):
    with pytest.raises(ValueError, match=r"cityscapes_fine_instance_seg_train: .*no images"):
        DatasetCatalog.get("cityscapes_fine_instance_seg_train")


def test_instances_are_detectron2s(root):
    """As Detectron2 reads them when it is told to read the PNG files as masks."""
    pytest.importorskip("cityscapesscripts")
    folder = root / "cityscapes"
    polygons = folder / "gtFine/val/aachen"
    for suffix in ("labelIds.png", "polygons.json"):  # only asked whether they are there
        (polygons / f"{NAME}_gtFine_{suffix}").touch()
    (expected,) = detectron2_instances(
        str(folder / "leftImg8bit/val"),
        str(folder / "gtFine/val"),
        from_json=False,
        to_polygons=False,
    )
    (entry,) = DatasetCatalog.get("cityscapes_fine_instance_seg_val")
    assert [a["segmentation"] for a in entry["annotations"]] == [
        a["segmentation"] for a in expected["annotations"]
    ]
    for key in ("category_id", "iscrowd"):
        assert [a[key] for a in entry["annotations"]] == [a[key] for a in expected["annotations"]]
