"""Which files inputs mean, and names and numbers of results."""

import os

import numpy as np
import pytest

from proscale.errors import ConfigError, DataError
from proscale.predict.files import find_sources, first_image, unique_name
from proscale.predict.video import VideoWriter


@pytest.fixture
def tree(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "sub/a.jpg", "sub/clip.MP4", "out/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def found(tree, *inputs):
    sources = find_sources([str(tree / text) for text in inputs], leave_out=tree / "out")
    return [
        (str(source.path.relative_to(tree)), source.name, source.image_id) for source in sources
    ]


def test_folder_with_what_is_below_but_not_with_its_own_results(tree):
    assert found(tree, "") == [
        ("a.PNG", "a", 1),
        ("b.jpg", "b", 2),
        ("sub/a.jpg", "a_2", 3),
        ("sub/clip.MP4", "clip", None),
    ]


def test_patterns_and_files_each_once(tree):
    assert found(tree, "*.jpg", "b.jpg", "**/a.*", "notes.txt") == [
        ("b.jpg", "b", 1),
        ("a.PNG", "a", 2),
        ("sub/a.jpg", "a_2", 3),
        ("notes.txt", "notes", 4),  # named, so that its reader names the error
    ]


def test_a_file_of_earlier_results_that_is_named_is_meant(tree):
    assert found(tree, "out/a.jpg") == [("out/a.jpg", "a", 1)]


def test_numbers_that_are_names_are_ids(tree):
    (tree / "coco").mkdir()
    for name in ("000000000139.jpg", "000000000285.jpg"):
        (tree / "coco" / name).touch()
    assert [id_ for _, _, id_ in found(tree, "coco")] == [139, 285]
    (tree / "285.png").touch()
    ids = [id_ for _, _, id_ in found(tree, "b.jpg", "coco", "285.png")]
    assert ids == [286, 139, 285, 287]


@pytest.mark.parametrize(
    "text, message",
    [
        ("missing.jpg", "no such file: expected images, videos, folders and patterns"),
        ("*.bmp", "no images or videos"),
        ("out", "no images or videos"),
        ("a\0b.jpg", "no such file"),
        ("a\0*.jpg", "no such file"),
        ("a" * 300 + ".jpg", "no such file"),
        ("~nosuchuser/a.jpg", "no such file"),
        ("/dev/zero", "no such file"),
    ],
)
def test_nothing_there(tree, text, message):
    with pytest.raises(ConfigError, match=message):
        found(tree, text)


def test_no_name_is_not_the_current_folder(tree, monkeypatch):
    monkeypatch.chdir(tree)
    with pytest.raises(ConfigError, match="INPUT is : there is no such file"):
        find_sources([""], leave_out=tree / "out")


def test_unique_names_on_file_systems_without_case():
    taken = {"c"}
    added = [unique_name(name, taken) for name in ("a", "A", "a_2", "b", "a", "c")]
    assert added == ["a", "A_2", "a_2_2", "b", "a_3", "c_2"]


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        (b"a" * 250, "a" * 180),
        ("ä".encode() * 120, "ä" * 90),
        (b"caf\xe9 \x1b[31m", "caf_ _[31m"),
        ("寿司 photo.1".encode(), "寿司 photo.1"),
        (b"9" * 30, "9" * 30),
    ],
)
def test_awkward_names_are_shorter_and_simpler(tmp_path, stem, name):
    path = os.fsencode(tmp_path) + b"/" + stem + b".jpg"
    with open(path, "w"):
        pass
    with open(path[:-5] + b"~.jpg", "w"):
        pass
    sources = find_sources([str(tmp_path)], leave_out=tmp_path / "out")
    assert name in {source.name for source in sources}
    assert len({source.name for source in sources}) == 2
    assert {source.image_id for source in sources} == {1, 2}


def test_the_first_image_may_be_a_frame(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    video = VideoWriter(tmp_path / "b.mp4", 25.0)
    for shade in (250, 0):
        video.add(np.full((48, 64, 3), shade, dtype=np.uint8))
    video.close()
    frame = first_image(find_sources([str(tmp_path)], leave_out=tmp_path / "out"))
    assert frame.shape == (48, 64, 3)
    assert frame.min() > 200


def test_without_a_first_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="INPUT has 2 files: none of them can be read"):
        first_image(find_sources([str(tmp_path)], leave_out=tmp_path / "out"))
