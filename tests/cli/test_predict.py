"""The command: its arguments, its files, and its exit status."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from proscale.predict.files import VIDEO_SAMPLES
from proscale.predict.video import VideoWriter, read_frames
from proscale_cli import main


@pytest.fixture
def command(small_cfg, tmp_path):
    """Returns a function: arguments → runs the command with a small model of random weights."""
    small_cfg.INPUT.MIN_SIZE_TEST = 64
    test = small_cfg.MODEL.MASK_FORMER.TEST
    test.OBJECT_MASK_THRESHOLD = test.OVERLAP_THRESHOLD = 0.0
    (tmp_path / "model.yaml").write_text(small_cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": build_model(small_cfg).state_dict()}, tmp_path / "model.pth")
    model = ["--config-file", tmp_path / "model.yaml", "--weights", tmp_path / "model.pth"]
    output = tmp_path / "out"
    return lambda *arguments: main(["predict", *map(str, [*model, *arguments, "--output", output])])


@pytest.fixture
def images(tmp_path):
    """A folder with three images, two of them of one name and one in a folder below."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "more/b.png"):
        pixels = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48)).save(folder / name)
    return folder


def read(tmp_path, name):
    return json.loads((tmp_path / "out" / name).read_text())


def names(tmp_path, folder):
    return sorted(path.name for path in (tmp_path / "out" / folder).iterdir())


def test_panoptic_folder(command, images, tmp_path, capsys):
    command(images, "--batch-size", "2")
    assert "3 of 3 files" in capsys.readouterr().out
    assert names(tmp_path, "panoptic") == ["a.png", "a_2.png", "b.png"]
    assert names(tmp_path, "overlays") == ["a.jpg", "a_2.jpg", "b.jpg"]
    content = read(tmp_path, "panoptic.json")
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    assert [entry["file_name"] for entry in content["annotations"]] == names(tmp_path, "panoptic")
    assert len(content["categories"]) == 133
    assert (tmp_path / "out" / "index.html").is_file()


def test_instances_and_threshold(command, images, tmp_path):
    command(images, "--task", "instance", "--score-threshold", "0")
    everything = read(tmp_path, "instances.json")
    assert {entry["image_id"] for entry in everything} == {1, 2, 3}
    command(images, "--task", "instance")  # random weights are sure of nothing
    assert read(tmp_path, "instances.json") == []


def test_semantic(command, images, tmp_path):
    command(images / "a.png", "--task", "semantic")
    assert names(tmp_path, "semantic") == ["a.png"]
    assert not (tmp_path / "out" / "panoptic").exists()


def test_budget_by_latency_and_by_cost(command, images, small_cfg, tmp_path, capsys):
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [2, 2, 1]
    (tmp_path / "model.yaml").write_text(small_cfg.dump())
    torch.save({"model": build_model(small_cfg).state_dict()}, tmp_path / "model.pth")
    (images / "0.jpg").write_bytes(b"no image")  # so that the next file has the first image
    with pytest.raises(SystemExit, match="1 of 4 files could not be read"):
        command(images, "--latency", "100000ms")
    printed = capsys.readouterr().out
    assert "MODEL.PROSCALE.BUDGET [2,2,1]: " in printed
    assert " ms an image, " in printed
    assert "(the first image, 48x64 pixels)" in printed
    command(images / "a.png", "--budget", "50%")
    assert "MODEL.PROSCALE.BUDGET [" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"--budget is 1\.0%: expected at least"):
        command(images / "a.png", "--budget", "1%")


def test_unreadable_files_are_skipped_and_reported(command, images, tmp_path, capsys):
    (images / "broken.jpg").write_bytes((images / "a.jpg").read_bytes()[:200])
    (images / "clip.mp4").write_text("no video")
    with pytest.raises(SystemExit, match="2 of 5 files could not be read") as end:
        command(images)
    assert isinstance(end.value.code, str)  # which Python prints, and turns into the status 1
    printed = capsys.readouterr()
    assert f"skipped {images / 'broken.jpg'}: not a readable image" in printed.err
    assert f"skipped {images / 'clip.mp4'}: not a readable video" in printed.err
    assert "3 of 5 files" in printed.out
    assert names(tmp_path, "panoptic") == ["a.png", "a_2.png", "b.png"]
    skipped = read(tmp_path, "predictions.json")["skipped"]
    assert [entry["file_name"] for entry in skipped] == [
        str(images / "broken.jpg"),
        str(images / "clip.mp4"),
    ]
    assert not (tmp_path / "out" / "videos").exists()


def test_video(command, images, tmp_path):
    video = VideoWriter(images / "a.mp4", 5.0)
    for grey in range(0, 200, 16):
        video.add(np.full((48, 64, 3), grey, np.uint8))
    video.close()
    command(images / "a.png", images / "a.mp4", "--workers", "1")
    frames = list(read_frames(tmp_path / "out" / "videos" / "a_2.mp4"))
    assert len(frames) == 13 and frames[0].shape == (48, 64, 3)
    assert len(names(tmp_path, "overlays")) == 1 + VIDEO_SAMPLES
    records = read(tmp_path, "predictions.json")["images"]
    assert [record["id"] for record in records] == list(range(1, 2 + VIDEO_SAMPLES))
    assert records[1]["file_name"] == f"{images / 'a.mp4'}#0"
    assert records[-1]["name"] == "a_2_000012"


def test_overrides_stand_anywhere(command, images, tmp_path):
    for arguments in (
        [images / "a.png", "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False"],
        [images / "a.png", "--workers", "1", "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False"],
    ):
        command(*arguments)
        assert read(tmp_path, "predictions.json")["task"] == "instance"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.jpg"], "INPUT is missing.jpg: there is no such file"),
        (["{}", "--task", "semantic", "--score-threshold", "0.5"], "semantic ones have none"),
        (["{}", "MODEL.NOTHING", "1"], "there is no config key MODEL.NOTHING"),
        (["{}", "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "False", "--task", "semantic"], "expected"),
    ],
)
def test_wrong_use_is_one_sentence(command, images, arguments, message):
    with pytest.raises(SystemExit, match=message):
        command(*(argument.format(images) for argument in arguments))


@pytest.mark.parametrize("option", ["--score-threshold=2", "--score-threshold=x", "--nothing"])
def test_wrong_options(command, images, option, capsys):
    with pytest.raises(SystemExit):
        command(images, option)
    assert option.split("=")[0] in capsys.readouterr().err


AWKWARD = [
    b"a" * 250 + b".jpg",
    b"a" * 249 + b"b.jpg",
    "ä".encode() * 125 + b".jpg",
    b"caf\xe9.jpg",
    b"caf\xe8.jpg",
    b"line\nbreak \x1b[31m.jpg",
    b'<img src="x">.jpg',
    b"..jpg",
]


def test_awkward_names(command, images, tmp_path, capsys):
    folder = os.fsencode(tmp_path / "awkward")
    os.mkdir(folder)
    for name in AWKWARD:
        shutil.copy(os.fsencode(images / "a.jpg"), os.path.join(folder, name))
    with open(os.path.join(folder, b"broken\n\xff.jpg"), "wb") as file:
        file.write(b"no image")
    with pytest.raises(SystemExit, match="1 of 9 files could not be read or written"):
        command(tmp_path / "awkward")
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("skipped"))
    assert r"broken\n\udcff.jpg: not a readable image" in line
    found = read(tmp_path, "predictions.json")
    assert {os.fsencode(image["file_name"]) for image in found["images"]} == {
        os.path.join(folder, name) for name in AWKWARD
    }
    assert len(names(tmp_path, "overlays")) == len(names(tmp_path, "panoptic")) == len(AWKWARD)
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert page.count('<article class="card"') == len(AWKWARD) and "&lt;img src=&quot;x" in page
    assert "broken\n\\udcff.jpg: not a readable image" in page


def test_one_file_that_cannot_be_written(command, images, tmp_path, capsys):
    """The others are, and the reason is told."""
    (tmp_path / "out" / "overlays" / "a_2.jpg").mkdir(parents=True)
    with pytest.raises(SystemExit, match="1 of 3 files could not be read or written"):
        command(images)
    assert "skipped " in (told := capsys.readouterr().err) and "Is a directory" in told
    assert names(tmp_path, "panoptic") == ["a.png", "b.png"]
    assert len(read(tmp_path, "predictions.json")["images"]) == 2
    assert len(read(tmp_path, "predictions.json")["skipped"]) == 1


def test_a_video_that_cannot_be_written(command, images, tmp_path, capsys):
    video = VideoWriter(images / "b.mp4", 5.0)
    for grey in range(0, 200, 16):
        video.add(np.full((48, 64, 3), grey, np.uint8))
    video.close()
    shutil.copy(images / "b.mp4", images / "c.mp4")
    (tmp_path / "out" / "videos" / "b.mp4").mkdir(parents=True)
    with pytest.raises(SystemExit, match="1 of 5 files could not be read or written"):
        command(images, "--batch-size", "4")
    assert f"skipped {images / 'b.mp4'}: " in capsys.readouterr().err
    assert len(list(read_frames(tmp_path / "out" / "videos" / "c.mp4"))) == 13


def test_a_full_disk_ends_the_command(command, images, tmp_path, monkeypatch):
    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("proscale.predict.outputs.write_panoptic_png", fill)
    with pytest.raises(SystemExit, match=r"panoptic/a\.png: cannot be written: No space left"):
        command(images)
    assert names(tmp_path, "panoptic") == []


@pytest.fixture
def pose_command(small_pose_cfg, tmp_path):
    """Returns a function as ``command``, for a pose estimator."""
    (tmp_path / "model.yaml").write_text(small_pose_cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": build_model(small_pose_cfg).state_dict()}, tmp_path / "model.pth")
    model = ["--config-file", tmp_path / "model.yaml", "--weights", tmp_path / "model.pth"]
    output = tmp_path / "out"
    return lambda *arguments: main(["predict", *map(str, [*model, *arguments, "--output", output])])


@pytest.fixture
def boxes(tmp_path):
    """A detector's file: two persons in the first image, and one in an image of others."""
    path = tmp_path / "boxes.json"
    some = {"image_id": 1, "category_id": 1, "bbox": [4, 2, 20, 40], "score": 0.9}
    found = [some, some | {"bbox": [30, 2, 20, 40]}, some | {"category_id": 2}]
    path.write_text(json.dumps([*found, some | {"image_id": 99}]))
    return path


def test_poses_in_the_boxes_of_a_file(pose_command, boxes, images, tmp_path):
    pose_command(images, "--boxes", boxes, "MODEL.POSE.OKS_NMS_THRESH", "1.0")
    found = read(tmp_path, "keypoints.json")
    assert [(entry["image_id"], len(entry["keypoints"])) for entry in found] == [(1, 51), (1, 51)]
    assert sorted(entry["bbox"][0] for entry in found) == [4, 30]
    numbers = [len(image["objects"]) for image in read(tmp_path, "predictions.json")["images"]]
    assert numbers == [2, 0, 0]
    assert names(tmp_path, "overlays") == ["a.jpg", "a_2.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a pose estimator needs the boxes of persons: expected either --boxes FILE, or"),
        (["--boxes", "a", "--person-model", "b"], "expected either --boxes FILE, or"),
        (["--person-weights", "b"], "--person-weights are given alone: expected --person-model"),
        (
            ["--person-config", "configs/coco/panoptic/proscale_r50_333.yaml"],
            r"--person-weights is missing: .* needs --person-model alone",
        ),
    ],
)
def test_persons_have_one_source(pose_command, images, arguments, message):
    with pytest.raises(SystemExit, match=message):
        pose_command(images, *arguments)


def test_boxes_have_to_be_those_of_the_images(pose_command, boxes, images, tmp_path):
    boxes.write_text(boxes.read_text().replace('"image_id": 1,', '"image_id": 98,'))
    with pytest.raises(
        SystemExit, match=r"boxes.json: no boxes of persons in the images: .* 1 \(a"
    ):
        pose_command(images, "--boxes", boxes)
    video = tmp_path / "film.mp4"
    video.write_bytes(b"")
    with pytest.raises(SystemExit, match=r"--boxes has no frames of videos such as .*film\.mp4"):
        pose_command(video, "--boxes", boxes)


def test_other_models_find_no_persons(command, images, boxes):
    with pytest.raises(SystemExit, match="are for pose estimators: the task is panoptic"):
        command(images, "--boxes", boxes)
