"""The generated data set: the same every time, consistent with itself, complete or absent."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

from proscale.data.datasets import shapes
from proscale.data.datasets.registration import register
from proscale.data.formats.coco_format import load_coco_panoptic
from proscale.data.formats.image_file import read_panoptic_png

SIZES = {"train": 30, "val": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return shapes.generate(folder, num_train=SIZES["train"], num_val=SIZES["val"])


def read_json(root: Path, name: str) -> dict:
    return json.loads((root / "annotations" / f"{name}.json").read_text())


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("split", SIZES)
def test_ids_areas_and_boxes_are_those_of_the_png(root, split):
    panoptic = read_json(root, f"panoptic_{split}")
    assert len(panoptic["annotations"]) == SIZES[split]
    for annotation in panoptic["annotations"]:
        ids = read_panoptic_png(root / f"panoptic_{split}" / annotation["file_name"])
        assert set(np.unique(ids)) == {s["id"] for s in annotation["segments_info"]}
        for segment in annotation["segments_info"]:
            rows, columns = np.nonzero(ids == segment["id"])
            x, y, width, height = segment["bbox"]
            assert segment["area"] == rows.size
            assert (x, x + width) == (columns.min(), columns.max() + 1)
            assert (y, y + height) == (rows.min(), rows.max() + 1)


@pytest.mark.parametrize("split", SIZES)
def test_images_exist_and_have_the_stated_size(root, split):
    images = read_json(root, f"panoptic_{split}")["images"]
    assert {path.name for path in (root / split).iterdir()} == {i["file_name"] for i in images}
    for image in images:
        with Image.open(root / split / image["file_name"]) as file:
            assert file.size == (image["width"], image["height"]) == (128, 128)


@pytest.mark.parametrize("split", SIZES)
def test_every_class_occurs(root, split):
    panoptic = read_json(root, f"panoptic_{split}")
    occurring = {s["category_id"] for a in panoptic["annotations"] for s in a["segments_info"]}
    assert occurring == {category["id"] for category in panoptic["categories"]}


@pytest.mark.parametrize("split", SIZES)
def test_scenes_have_the_promised_segments(root, split):
    isthing = {c["id"]: c["isthing"] for c in read_json(root, f"panoptic_{split}")["categories"]}
    for annotation in read_json(root, f"panoptic_{split}")["annotations"]:
        segments = annotation["segments_info"]
        stuff = [s for s in segments if not isthing[s["category_id"]]]
        fewest, most = shapes.THINGS_RANGE
        assert fewest <= len(segments) - len(stuff) <= most
        assert len({s["category_id"] for s in stuff}) == len(stuff)
        # The smallest region of a scene, and no thing is reduced to a sliver.
        assert min(s["area"] for s in stuff) >= shapes.MIN_STUFF_FRACTION * 128**2
        assert min(s["area"] for s in segments) > 100


@pytest.mark.parametrize("split", SIZES)
def test_instances_are_the_things_of_the_panoptic_truth(root, split):
    coco = COCO(root / "annotations" / f"instances_{split}.json")
    panoptic = read_json(root, f"panoptic_{split}")
    things = {c["id"] for c in panoptic["categories"] if c["isthing"]}
    assert set(coco.cats) == things
    for annotation in panoptic["annotations"]:
        ids = read_panoptic_png(root / f"panoptic_{split}" / annotation["file_name"])
        masks = {
            (instance["category_id"], coco.annToMask(instance).tobytes())
            for instance in coco.imgToAnns[annotation["image_id"]]
        }
        assert masks == {
            (segment["category_id"], (ids == segment["id"]).astype(np.uint8).tobytes())
            for segment in annotation["segments_info"]
            if segment["category_id"] in things
        }


@pytest.fixture
def free_names():
    """Take the splits' names from the default data set for the duration of a test."""
    names = [f"shapes_{split}" for split in SIZES]
    saved = {name: MetadataCatalog.get(name).as_dict() for name in names}
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    yield
    for name, metadata in saved.items():
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        del metadata["name"]
        register(name, load_coco_panoptic, metadata)


def test_registered_classes_and_files_are_those_written(root, free_names):
    shapes.register_shapes(root)
    for split, size in SIZES.items():
        entries = DatasetCatalog.get(f"shapes_{split}")
        assert len(entries) == size
        assert all(Path(entry["file_name"]).is_file() for entry in entries)
        assert all(Path(entry["pan_seg_file_name"]).is_file() for entry in entries)
        metadata = MetadataCatalog.get(f"shapes_{split}")
        categories = read_json(root, f"panoptic_{split}")["categories"]
        assert metadata.thing_classes == [category["name"] for category in categories]
        assert Path(metadata.json_file).is_file()


def test_same_parameters_give_the_same_bytes(tmp_path):
    first = shapes.generate(tmp_path / "a", num_train=3, num_val=2, image_size=64)
    second = shapes.generate(tmp_path / "b", num_train=3, num_val=2, image_size=64)
    assert contents(first) == contents(second)


def test_seeds_splits_and_images_differ(tmp_path):
    first = contents(shapes.generate(tmp_path / "a", num_train=2, num_val=2, image_size=64))
    second = contents(
        shapes.generate(tmp_path / "b", num_train=2, num_val=2, image_size=64, seed=1)
    )
    images = [content[name] for content in (first, second) for name in first if ".jpg" in name]
    assert len(set(images)) == len(images) == 8


def test_complete_data_set_is_kept(tmp_path):
    root = shapes.generate(tmp_path / "a", num_train=1, num_val=1, image_size=64)
    before = (root / shapes.STAMP).stat().st_mtime_ns
    assert shapes.generate(root, num_train=1, num_val=1, image_size=64) == root
    assert (root / shapes.STAMP).stat().st_mtime_ns == before


def test_other_parameters_replace_it(tmp_path):
    root = shapes.generate(tmp_path / "a", num_train=2, num_val=1, image_size=64)
    shapes.generate(root, num_train=1, num_val=1, image_size=64)
    assert [path.name for path in (root / "train").iterdir()] == ["000001.jpg"]


def test_interrupted_writing_leaves_no_data_set_and_can_be_repeated(tmp_path, monkeypatch):
    def interrupt(rng, size):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw_scene", interrupt)
        with pytest.raises(KeyboardInterrupt):
            shapes.generate(tmp_path / "a", num_train=1, num_val=1, image_size=64)
    assert not (tmp_path / "a").exists()

    shapes.generate(tmp_path / "a", num_train=1, num_val=1, image_size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="not a generated shapes data set"):
        shapes.generate(tmp_path, num_train=1, num_val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_too_small_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="image_size is 32"):
        shapes.generate(tmp_path / "a", num_train=1, num_val=1, image_size=32)
