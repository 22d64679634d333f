"""Nuclei in COCO's formats, from the published folders of masks."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from proscale.data.datasets.nuclei import register_nuclei
from proscale.data.formats.image_file import read_panoptic_png
from proscale.data.prepare import prepare
from proscale.errors import DataError, MissingFileError

SIZE = (6, 9)
IDS = [f"{number:02d}" for number in range(8)]


def write(root: Path, image_id: str, masks: dict[str, np.ndarray]) -> None:
    folder = root / "nuclei/stage1_train" / image_id
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    pixels = np.full((*SIZE, 4), int(image_id), np.uint8)
    Image.fromarray(pixels, "RGBA").save(folder / "images" / f"{image_id}.png")
    for name, mask in masks.items():
        Image.fromarray(255 * mask.astype(np.uint8)).save(folder / "masks" / f"{name}.png")


@pytest.fixture
def root(tmp_path, restored_catalogs) -> Path:
    """Eight images of two nuclei, whose masks share a pixel."""
    first, second = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    first[1:3, 1:4], second[2:5, 3:7] = True, True
    for image_id in IDS:
        write(tmp_path, image_id, {"a": first, "b": second})
    register_nuclei(tmp_path)
    return tmp_path


def test_every_seventh_image_is_for_validation(root):
    made = {tally.target.name: tally.made for tally in prepare("nuclei", root, workers=2)}
    assert made["train"] == made["panoptic_train.json"] == made["instances_train.json"] == 7
    (entry,) = DatasetCatalog.get("nuclei_panoptic_val")
    assert entry["image_id"] == IDS[6]
    assert len(DatasetCatalog.get("nuclei_panoptic_train")) == 7
    # Called again it keeps everything.
    assert not any(tally.made for tally in prepare("nuclei", root, workers=1))


def test_nuclei_are_things_on_a_background(root):
    prepare("nuclei", root, workers=1)
    (entry,) = DatasetCatalog.get("nuclei_panoptic_val")
    ids = read_panoptic_png(entry["pan_seg_file_name"])
    segments = {s["id"]: s for s in entry["segments_info"]}
    assert [s["isthing"] for s in segments.values()] == [False, True, True]
    # The first mask has the shared pixel.
    assert [s["area"] for s in segments.values()] == [54 - 6 - 11, 6, 11]
    assert ids[2, 3] == ids[1, 1] != ids[3, 3]
    instances = json.loads((root / "nuclei/annotations/instances_val.json").read_text())
    masks = [pycocotools.mask.decode(a["segmentation"]) for a in instances["annotations"]]
    assert [int(mask.sum()) for mask in masks] == [6, 11]
    assert [category["name"] for category in instances["categories"]] == ["nucleus"]
    # Images lose their alpha channel.
    assert Image.open(entry["file_name"]).mode == "RGB"


@pytest.mark.parametrize("missing", ["masks", "stage1_train"])
def test_a_missing_source_is_told(tmp_path, missing):
    if missing == "masks":
        write(tmp_path, "01", {})
    with pytest.raises(MissingFileError, match=missing):
        prepare("nuclei", tmp_path, workers=1)


def test_a_mask_of_another_size_is_told(tmp_path):
    write(tmp_path, "01", {"odd": np.ones((3, 3), bool)})
    with pytest.raises(DataError, match=r"odd.png: it has \(height, width\) \(3, 3\): expected"):
        prepare("nuclei", tmp_path, workers=1)
