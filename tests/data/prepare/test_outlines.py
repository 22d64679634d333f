"""COCO's instance files from the exports of annotation tools."""

import json

import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from proscale.data.check import check_datasets
from proscale.data.datasets.own import register_own_data
from proscale.data.prepare import prepare
from proscale.errors import DataError

SQUARE = [[2, 2], [8, 2], [8, 8], [2, 8]]
SPLITS = {"TRAIN": "train", "VAL": "val"}


def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (shade, 9, 9)).save(path)


def labelme(folder, number, shapes, change=()):
    picture(folder / f"{number}.png", number)
    shapes = [{"label": "cat", "shape_type": "polygon", **shape} for shape in shapes]
    content = {"imagePath": f"{number}.png", "shapes": shapes, **dict(change)}
    (folder / f"{number}.json").write_text(json.dumps(content))


def yolo(root, line, split="train"):
    (root / "data.yaml").write_text("names: {0: cat, 1: dog}\n")
    picture(root / "images" / split / f"{split}.png", len(split))
    (root / "labels" / split).mkdir(parents=True)
    (root / "labels" / split / f"{split}.txt").write_text(line)


def annotations(root, split="train"):
    return json.loads((root / f"annotations/instances_{split}.json").read_text())


def check(root):
    """Errors of the data set that the export has become."""
    block = {"NAME": "exported", "TASK": "instance", "ROOT": str(root)}
    for key, split in SPLITS.items():
        block[key] = {"IMAGES": ".", "ANNOTATIONS": f"annotations/instances_{split}.json"}
    register_own_data([block])
    assert DatasetCatalog.get("exported_train")
    return [
        p
        for p in check_datasets(["exported_train", "exported_val"], workers=1).problems
        if p.is_error
    ]


def test_labelme(tmp_path, restored_catalogs, caplog):
    for number in range(5):
        parts = [
            {"points": SQUARE, "group_id": 1},
            {"points": [[10, 2], [14, 2], [14, 6]], "group_id": 1},
        ]
        box = {"label": "dog", "points": [[9, 9], [5, 4]], "shape_type": "rectangle"}
        line = {"points": [[0, 0], [1, 1]], "shape_type": "line"}
        labelme(tmp_path, number, [*parts, box, line])
    (train, val) = prepare("labelme", tmp_path, workers=1)
    assert (train.made, val.made) == (4, 1)
    content = annotations(tmp_path)
    assert [c["name"] for c in content["categories"]] == ["cat", "dog"]
    assert [len(a["segmentation"]) for a in content["annotations"][:2]] == [2, 1]
    assert content["annotations"][1]["bbox"] == [5, 4, 4, 5]
    assert "5 line" in caplog.text
    assert check(tmp_path) == []


def test_labelme_in_splits(tmp_path):
    for number, split in enumerate(("train", "valid")):
        (tmp_path / split).mkdir()
        labelme(tmp_path / split, number, [{"points": SQUARE}])
    prepare("labelme", tmp_path, workers=1)
    assert annotations(tmp_path, "val")["images"][0]["file_name"] == "valid/1.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imagePath": "../../secret.png"}, "imagePath is .*, which leaves"),
        ({"imagePath": "/etc/passwd"}, "which leaves"),
        ({"imagePath": 3}, "imagePath is 3: expected the name of a file"),
        ({"imagePath": "b.png"}, "but there is no"),
        ({"shapes": 3}, "it has no list 'shapes'"),
        ({"shapes": [{"label": "a"}]}, r"shapes\[0\] has no key 'points'"),
    ],
)
def test_what_is_wrong_in_labelme_is_named(tmp_path, change, message):
    labelme(tmp_path, 0, [{"points": SQUARE}], change)
    with pytest.raises(DataError, match=message):
        prepare("labelme", tmp_path, workers=1)


@pytest.mark.parametrize(
    "points", [[[1, 2]], [[1, "a"], [1, 2], [3, 4]], [3], [[1e9, 0], [0, 0], [5, 5]]]
)
def test_unusable_points_are_named(tmp_path, points):
    labelme(tmp_path, 0, [{"points": points}])
    with pytest.raises(DataError, match=r"0\.(json|png): "):
        prepare("labelme", tmp_path, workers=1)


def test_a_class_is_a_text_on_one_line(tmp_path):
    labelme(tmp_path, 0, [{"points": SQUARE, "label": "a\nb"}])
    with pytest.raises(DataError, match="expected a text on one line"):
        prepare("labelme", tmp_path, workers=1)


def test_yolo(tmp_path, restored_catalogs, caplog):
    yolo(tmp_path, "1 0.1 0.2 0.4 0.2 0.4 0.8 0.1 0.8\n\n")
    yolo(tmp_path, "0 0.5 0.5 0.5 0.4\n", "val")
    prepare("yolo", tmp_path, workers=1)
    (annotation,) = annotations(tmp_path)["annotations"]
    assert annotation["category_id"] == 2
    assert annotation["segmentation"] == [pytest.approx([2, 2, 8, 2, 8, 8, 2, 8])]
    assert annotations(tmp_path, "val")["annotations"][0]["bbox"] == [5, 3, 10, 4]
    assert "1 lines are boxes: expected TASK: detection" in caplog.text
    assert check(tmp_path) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.1 0.1 0.2 0.2 0.3 0.1", "line 1: class 2: expected 0 to 1"),
        ("0.5 0.1 0.1 0.2 0.2 0.3 0.1", r"class 0\.5"),
        ("0 a b", "expected numbers"),
        ("0 0.1 0.1 0.2", "3 numbers: expected x and y of three points"),
        ("0 nan 0.1 0.2 0.2 0.3 0.1", "expected x and y"),
    ],
)
def test_what_is_wrong_in_yolo_is_named(tmp_path, line, message):
    yolo(tmp_path, line)
    with pytest.raises(DataError, match=message):
        prepare("yolo", tmp_path, workers=1)


@pytest.mark.parametrize("text", ["names: 3", "names: [a, a]", "[" * 9000, "{", "names: {1: a}"])
def test_names_of_yolo_are_a_list(tmp_path, text):
    yolo(tmp_path, "")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"data\.yaml: "):
        prepare("yolo", tmp_path, workers=1)


def test_no_export(tmp_path):
    for name in ("labelme", "yolo"):
        with pytest.raises(DataError, match=str(tmp_path)):
            prepare(name, tmp_path, workers=1)
