"""Registering the data sets of DATASETS.OWN: classes, colours and entries come from the files."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from proscale.config.own_data import TASKS, own_classes
from proscale.data.datasets.own import flip_pairs_by_name, register_own_data
from proscale.data.datasets.shapes import CATEGORIES
from proscale.data.formats.problems import raise_first
from proscale.data.mappers.annotations import SemanticReader

NAMES = [category["name"] for category in CATEGORIES]


def edit_json(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("task", TASKS)
def test_both_splits_are_registered(own_block, task):
    register_own_data([own_block(task)])
    register_own_data([own_block(task)])  # has no effect
    assert len(DatasetCatalog.get(f"own_{task}_train")) == 3
    assert len(DatasetCatalog.get(f"own_{task}_val")) == 2


def test_panoptic_classes_come_from_the_file(own_block):
    register_own_data([own_block("panoptic")])
    metadata = MetadataCatalog.get("own_panoptic_val")
    assert own_classes("own_panoptic_val") == tuple(NAMES)
    assert metadata.thing_colors[0] == CATEGORIES[0]["color"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4}


def test_instance_classes_come_from_the_file(own_block):
    register_own_data([own_block("instance")])
    metadata = MetadataCatalog.get("own_instance_train")
    assert metadata.thing_classes == NAMES[:5]
    assert metadata.evaluator_type == "coco"
    entry = DatasetCatalog.get("own_instance_train")[0]
    assert {a["category_id"] for a in entry["annotations"]} <= set(range(5))


def test_semantic_classes_are_the_labels_found(own_data, own_block):
    (dataset,) = register_own_data([own_block("semantic")])
    masks = [*own_data.glob("labels_*/*.png")]
    highest = max(
        int(labels[labels != 255].max())
        for labels in (np.asarray(Image.open(mask)) for mask in masks)
    )
    assert dataset.labels.classes == tuple(f"class_{label}" for label in range(highest + 1))
    assert own_classes("own_semantic_val") == dataset.labels.classes
    assert MetadataCatalog.get("own_semantic_val").ignore_label == 255


def test_semantic_classes_may_be_named(own_data, own_block):
    for mask in own_data.glob("labels_*/*.png"):
        mask.write_text("never read")
    (dataset,) = register_own_data([{**own_block("semantic"), "CLASSES": NAMES}])
    assert dataset.labels.classes == own_classes("own_semantic_train") == tuple(NAMES)
    assert len(MetadataCatalog.get("own_semantic_train").stuff_colors) == len(NAMES)


def test_semantic_colours_come_from_the_palette(own_data, own_block):
    for mask in own_data.glob("labels_*/*.png"):
        image = Image.open(mask)
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.save(mask)
    register_own_data([own_block("semantic")])
    assert MetadataCatalog.get("own_semantic_val").stuff_colors[:2] == [[10, 20, 30], [40, 50, 60]]


def test_label_images_without_labels(own_data, own_block):
    for mask in own_data.glob("labels_*/*.png"):
        Image.new("L", (64, 64), 255).save(mask)
    with pytest.raises(ValueError, match=r"CLASSES is not given, and there are no labels in 5"):
        register_own_data([own_block("semantic")])


def masks_of(own_data):
    return sorted(own_data.glob("labels_*/*.png"))


def read_classes(block, num_classes):
    """The class ids of the first image, as training and evaluation read them."""
    entry = DatasetCatalog.get(f"{block['NAME']}_train")[0]
    reader = SemanticReader(num_classes=num_classes, ignore_label=255)
    return reader.read_labels(entry, (64, 64), raise_first)


def test_another_label_may_be_ignored(own_data, own_block):
    for mask in masks_of(own_data):
        Image.fromarray(np.tile(np.array([0, 1, 2, 11], np.uint8), (64, 16))).save(mask)
    block = {**own_block("semantic"), "IGNORE_LABEL": 11}
    (dataset,) = register_own_data([block])
    assert len(dataset.labels.classes) == 3
    assert read_classes(block, 3)[0, :4].tolist() == [0, 1, 2, 255]


def test_classes_skip_the_ignored_label(own_data, own_block):
    for mask in masks_of(own_data):
        Image.fromarray(np.tile(np.array([0, 1, 2, 2], np.uint8), (64, 16))).save(mask)
    block = {**own_block("semantic"), "IGNORE_LABEL": 0}
    (dataset,) = register_own_data([block])
    assert dataset.labels.classes == ("class_1", "class_2")
    assert read_classes(block, 2)[0, :4].tolist() == [255, 0, 1, 1]


def test_labels_may_be_any_numbers(own_data, own_block):
    for mask in masks_of(own_data):
        Image.fromarray(np.tile(np.array([0, 255, 7, 9], np.uint8), (64, 16))).save(mask)
    labels = {"ground": 0, "cell": [255, 7]}
    block = {**own_block("semantic"), "LABELS": labels, "IGNORE_LABEL": [9]}
    register_own_data([block])
    assert own_classes("own_semantic_train") == ("ground", "cell")
    assert read_classes(block, 2)[0, :4].tolist() == [0, 1, 1, 255]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_may_be_labels(own_data, own_block, mode):
    colors = np.array([[128, 0, 0], [0, 64, 128], [0, 0, 0], [0, 0, 0]], np.uint8)
    for mask in masks_of(own_data):
        image = Image.fromarray(np.tile(colors, (64, 16, 1)))
        (image.quantize(8) if mode == "P" else image.convert(mode)).save(mask)
    named = {"wall": [0, 64, 128], "roof": [128, 0, 0]}
    block = {**own_block("semantic"), "COLORS": named, "IGNORE_LABEL": [0, 0, 0]}
    register_own_data([block])
    assert read_classes(block, 2)[0, :4].tolist() == [0, 1, 255, 255]
    assert MetadataCatalog.get("own_semantic_val").stuff_colors == [[128, 0, 0], [0, 64, 128]]


def test_labels_without_a_name_are_told(own_data, own_block):
    for mask in masks_of(own_data):
        Image.new("RGB", (64, 64), (1, 2, 3)).save(mask)
    block = {**own_block("semantic"), "COLORS": {"wall": [0, 64, 128]}}
    register_own_data([block])
    message = r"000001\.png: colour \[1, 2, 3\], 4096 pixels: expected \[0, 64, 128\]"
    with pytest.raises(ValueError, match=message):
        read_classes(block, 1)


def test_endings_of_names_are_found(own_data, own_block, caplog):
    caplog.set_level("INFO")
    for mask in masks_of(own_data):
        mask.rename(mask.with_name(f"{mask.stem}_mask.png"))
    (dataset,) = register_own_data([own_block("semantic")])
    assert dataset.mask_suffix == "_mask.png"
    assert "NAME_mask.png belongs to NAME.*" in caplog.text
    assert len(DatasetCatalog.get("own_semantic_train")) == 3


def test_several_endings_are_told(own_data, own_block):
    for mask in masks_of(own_data):
        Image.open(mask).save(mask.with_name(f"{mask.stem}_a.png"))
        mask.rename(mask.with_name(f"{mask.stem}_b.png"))
    with pytest.raises(ValueError, match=r"MASK_SUFFIX is not given, and .* _a\.png or _b\.png"):
        register_own_data([own_block("semantic")])


def test_grey_labels_in_colour_are_told(own_data, own_block, caplog):
    caplog.set_level("INFO")
    for mask in masks_of(own_data):
        Image.open(mask).convert("RGBA").save(mask)
    register_own_data([{**own_block("semantic")}])
    assert "label images have mode RGBA, read as grey" in caplog.text


def test_order_of_categories_may_differ_between_splits(own_data, own_block):
    path = own_data / "annotations" / "panoptic_val.json"
    edit_json(path, lambda content: content["categories"].reverse())
    register_own_data([own_block("panoptic")])
    assert own_classes("own_panoptic_val") == own_classes("own_panoptic_train") == tuple(NAMES)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_splits_must_agree_in_their_categories(own_data, own_block, task):
    name = {"panoptic": "panoptic", "instance": "instances"}[task]
    path = own_data / "annotations" / f"{name}_val.json"
    edit_json(path, lambda content: content["categories"][1].update(name="cube"))
    with pytest.raises(ValueError, match=rf"{name}_train.json and .*{name}_val.json .* ids \[2\]"):
        register_own_data([own_block(task)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "no list 'categories'"),
        (lambda c: c["categories"].clear(), "categories is empty"),
        (lambda c: c["categories"][0].pop("isthing"), r"categories\[0\] has no key 'isthing'"),
        (lambda c: c["categories"][0].update(id=2), r"categories\[1\]: id 2 is there twice"),
    ],
)
def test_unusable_categories_name_the_file(own_data, own_block, change, message):
    edit_json(own_data / "annotations" / "panoptic_train.json", change)
    with pytest.raises(ValueError, match=rf"panoptic_train\.json: .*{message}"):
        register_own_data([own_block("panoptic")])


@pytest.mark.parametrize(("task", "other"), [("panoptic", "instance"), ("instance", "panoptic")])
def test_the_other_format_is_told(own_block, task, other):
    block, wrong = own_block(task), own_block(other)
    for split in ("TRAIN", "VAL"):
        block[split]["ANNOTATIONS"] = wrong[split]["ANNOTATIONS"]
    with pytest.raises(ValueError, match=rf"json: .* expected .* TASK: {other}"):
        register_own_data([block])


def test_not_json(own_data, own_block):
    (own_data / "annotations" / "instances_val.json").write_text("{")
    with pytest.raises(ValueError, match=r"instances_val\.json: not a JSON file"):
        register_own_data([own_block("instance")])


def test_keypoints_come_from_the_category(own_block, caplog):
    register_own_data([own_block("keypoints")])
    metadata = MetadataCatalog.get("own_keypoints_train")
    assert metadata.keypoint_names == ["top", "left_side", "right_side"]
    assert metadata.keypoint_flip_map == [("left_side", "right_side")]
    rules = [tuple(ends) for *ends, _ in metadata.keypoint_connection_rules]
    assert rules == [("top", "left_side"), ("top", "right_side")]
    assert metadata.keypoint_oks_sigmas == [0.1] * 3
    assert "SIGMAS is not given: AP is computed with 0.1 for every keypoint" in caplog.text
    assert len(DatasetCatalog.get("own_keypoints_train")[0]["annotations"][0]["keypoints"]) == 9


def test_keypoints_may_be_described(own_block, caplog):
    given = {"FLIP_PAIRS": [["top", "left_side"]], "SIGMAS": [0.2, 0.3, 0.4]}
    register_own_data([own_block("keypoints") | given])
    metadata = MetadataCatalog.get("own_keypoints_val")
    assert metadata.keypoint_flip_map == [("top", "left_side")]
    assert metadata.keypoint_oks_sigmas == [0.2, 0.3, 0.4]
    assert "SIGMAS" not in caplog.text


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Left_eye", "Right_eye", "nose"], [("Left_eye", "Right_eye")]),
        (["rsho", "lsho", "rhan"], [("lsho", "rsho")]),
        (["left", "right"], [("left", "right")]),
        (["l_ear", "r_ear", "leg", "lip"], [("l_ear", "r_ear")]),
        (["top", "bottom"], []),
    ],
)
def test_names_tell_left_and_right(names, pairs):
    assert list(flip_pairs_by_name(names)) == pairs


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"FLIP_PAIRS": [["top", "bottom"]]}, r"FLIP_PAIRS has bottom: expected .* top, left_side"),
        ({"SIGMAS": [0.1]}, r"SIGMAS has 1 numbers: expected 3, one for each keypoint"),
    ],
)
def test_what_does_not_fit_the_keypoints_is_refused(own_block, given, message):
    with pytest.raises(ValueError, match=rf"OWN\[0\]\.{message}"):
        register_own_data([own_block("keypoints") | given])


def test_splits_must_agree_in_their_keypoints(own_data, own_block):
    path = own_data / "annotations" / "keypoints_val.json"
    edit_json(path, lambda content: content["categories"][0]["keypoints"].reverse())
    message = r"keypoints_train\.json and .*keypoints_val\.json differ in .* the keypoints"
    with pytest.raises(ValueError, match=message):
        register_own_data([own_block("keypoints")])


def test_a_name_means_one_data_set(own_block):
    register_own_data([own_block("panoptic")])
    with pytest.raises(ValueError, match="own_panoptic_train is already registered"):
        register_own_data([{**own_block("semantic"), "NAME": "own_panoptic"}])
