"""JBD's tables become COCO keypoint files; faults name file and line."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from proscale.data.check import check_datasets
from proscale.data.datasets.jbd import KEYPOINT_NAMES, register_jbd
from proscale.data.persons import person_records
from proscale.data.prepare import prepare
from proscale.errors import DataError

COLUMNS = [f"{name}_{value}" for name in KEYPOINT_NAMES for value in "xys"]
HEADER = ";".join(["event", "frame_num", "athlete", *COLUMNS])


def row(event, frame, unlabelled=()):
    """Keypoint k is at (10 + k, 20 + k)."""
    values = [
        (0, 0, 0) if k in unlabelled else (10 + k, 20.5 + k, 1) for k in range(len(KEYPOINT_NAMES))
    ]
    return ";".join(map(str, (event, frame, "?", *(v for value in values for v in value))))


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder as downloaded, with frames extracted."""
    jbd = tmp_path / "jump_broadcast"
    for event, frame in ((0, 7), (3, 12), (3, 13), (12, 345)):
        path = jbd / str(event) / f"{event}_({frame:05d}).jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), (event, frame % 255, 0)).save(path)
    train = ["some title;;", HEADER, row(0, 7), row(3, 12, unlabelled=(0, 5)), row(3, 13), ""]
    (jbd / "train.csv").write_text("\n".join(train))
    (jbd / "val.csv").write_text("\n".join(["some title", HEADER, row(12, "00345")]))
    boxes = ["image_id, min_x, min_y, width, height", "0_(00007),1,2,40,30"]
    boxes += ["3_(00012),5, 6, 20,10", "12_(00345),5,6,20,10"]
    (jbd / "bbox.csv").write_text("\n".join(boxes) + "\n")
    return tmp_path


def test_tables_become_coco_files(root):
    tallies = prepare("jbd", root, workers=1)
    assert [(t.target.name, t.made) for t in tallies] == [
        ("train_jump.json", 2),
        ("val_jump.json", 1),
    ]
    jbd = root / "jump_broadcast"
    content = json.loads((jbd / "annotations" / "train_jump.json").read_text())
    # The number of the event followed by that of the frame; a frame without a box is left out.
    assert [image["id"] for image in content["images"]] == [7, 300012]
    assert content["images"][1] == {
        "id": 300012,
        "file_name": "3/3_(00012).jpg",
        "height": 60,
        "width": 80,
    }
    second = content["annotations"][1]
    assert second["id"] == second["image_id"] == 300012
    assert second["bbox"] == [5, 6, 20, 10]
    assert second["num_keypoints"] == 18
    assert second["keypoints"][:6] == [0, 0, 0, 11, 21.5, 2]
    assert "area" not in second
    (category,) = content["categories"]
    assert (category["id"], category["keypoints"]) == (1, list(KEYPOINT_NAMES))
    assert (jbd / "images" / "train" / "3" / "3_(00012).jpg").samefile(jbd / "3" / "3_(00012).jpg")
    # Called again, nothing is left to do.
    assert [(t.made, t.kept) for t in prepare("jbd", root, workers=1)] == [(0, 2), (0, 1)]


def test_frames_may_be_in_their_place(root):
    jbd = root / "jump_broadcast"
    (jbd / "images" / "val").mkdir(parents=True)
    (jbd / "12").rename(jbd / "images" / "val" / "12")
    assert [(t.made, t.kept) for t in prepare("jbd", root, workers=1)] == [(2, 0), (0, 1)]


def test_registered_names_read_them(root, restored_catalogs):
    prepare("jbd", root, workers=1)
    register_jbd(root)
    first, _ = person_records(DatasetCatalog.get("keypoints_jbd_train"))
    assert first["annotations"][0]["keypoints"][:3] == [10.5, 21, 2]
    report = check_datasets(["keypoints_jbd_train"], workers=1)
    assert not report.has_errors
    assert {problem.kind for problem in report.problems} == {"area-missing"}


def edit(path, change):
    path.write_text(change(path.read_text()))


FAULTS = {
    "no boxes": (lambda r: (r / "bbox.csv").unlink(), r"bbox\.csv: there is no such file"),
    "no tables": (
        lambda r: [(r / f"{split}.csv").unlink() for split in ("train", "val")],
        r"there is none of .*train\.csv, .*val\.csv",
    ),
    "no frame": (
        lambda r: (r / "3" / "3_(00012).jpg").unlink(),
        r"train\.csv, line 4: there is no .*3_\(00012\)\.jpg",
    ),
    "no title above the header": (
        lambda r: edit(r / "val.csv", lambda text: text.partition("\n")[2]),
        r"val\.csv, line 2: there is no column event: expected .* separated by ';'",
    ),
    "commas": (
        lambda r: edit(r / "val.csv", lambda text: text.replace(";", ",")),
        r"val\.csv, line 2: there is no column event",
    ),
    "another number of values": (
        lambda r: edit(r / "val.csv", lambda text: text + ";5"),
        r"val\.csv, line 3: 64 values: expected 63",
    ),
    "text": (
        lambda r: edit(r / "val.csv", lambda text: text.replace(";11;", ";eleven;")),
        r"val\.csv, line 3: neck_x is \"eleven\": expected a number of pixels",
    ),
    "not a number": (
        lambda r: edit(r / "val.csv", lambda text: text.replace(";11;", ";nan;")),
        r"val\.csv, line 3: neck_x is \"nan\"",
    ),
    "infinite": (
        lambda r: edit(r / "bbox.csv", lambda text: text.replace("40", "inf")),
        r"bbox\.csv, line 2: width is \"inf\"",
    ),
    "an event that leads out": (
        lambda r: edit(r / "train.csv", lambda text: text.replace("\n3;12", "\n../3;12")),
        r"train\.csv, line 4: event is \"\.\./3\": expected 1 to 3 digits",
    ),
    "a frame of too many digits": (
        lambda r: edit(r / "train.csv", lambda text: text.replace("3;12", "3;123456")),
        r"train\.csv, line 4: frame_num is \"123456\": expected 1 to 5 digits",
    ),
    "a frame twice": (
        lambda r: edit(r / "train.csv", lambda text: text + row(3, 12)),
        r"train\.csv, line 6: event 3, frame 12 is there twice",
    ),
    "a box twice": (
        lambda r: edit(r / "bbox.csv", lambda text: text + "12_(00345),5,6,20,10"),
        r"bbox\.csv, line 5: image_id \"12_\(00345\)\" is there twice",
    ),
    "a box without size": (
        lambda r: edit(r / "bbox.csv", lambda text: text.replace("40,30", "0,30")),
        r"bbox\.csv, line 2: the box of .* is \[1, 2, 0, 30\]: expected a width and height",
    ),
    "no box of any frame": (
        lambda r: edit(r / "bbox.csv", lambda text: text.replace("12_", "13_")),
        r"val\.csv: it has no frame of .*bbox\.csv",
    ),
    "bytes": (
        lambda r: (r / "val.csv").write_bytes(b"\xff\xfe\x00"),
        r"val\.csv: not a text in UTF-8",
    ),
    "a frame that is no image": (
        lambda r: (r / "0" / "0_(00007).jpg").write_text("frame"),
        r"0_\(00007\)\.jpg: not a readable image",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_name_file_and_line(root, case):
    spoil, message = FAULTS[case]
    spoil(root / "jump_broadcast")
    with pytest.raises(DataError, match=message):
        prepare("jbd", root, workers=1)
