"""Conversions resume where they stopped, and leave nothing half-written."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proscale.data.prepare.conversion import (
    CocoPart,
    convert_images,
    convert_to_coco,
    write_png,
)

PIXELS = np.zeros((2, 3), np.uint8)
KEYS = ["a", "b", "c", "d"]
CATEGORIES = [{"id": 1, "name": "dog"}]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Interrupted(BaseException):
    """As a KeyboardInterrupt is, no Exception."""


def test_only_missing_images_are_made(tmp_path):
    folder = tmp_path / "out" / "deep"
    files = {folder / f"{key}.png": tmp_path / key for key in KEYS}
    made = []

    def convert(source: Path, target: Path) -> None:
        made.append(source.name)
        write_png(target, PIXELS)

    tally = convert_images(files, convert, folder=folder, workers=2)
    assert (tally.made, tally.kept) == (4, 0) and sorted(made) == KEYS
    (folder / "b.png").unlink()
    tally = convert_images(files, convert, folder=folder, workers=2)
    assert (tally.made, tally.kept) == (1, 3) and made[4:] == ["b"]


def test_a_file_is_there_completely_or_not_at_all(tmp_path, monkeypatch):
    def interrupted(image, file, format):
        file.write(b"half")
        raise Interrupted

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(Interrupted):
        write_png(tmp_path / "a.png", PIXELS)
    assert not names(tmp_path)


def test_what_a_killed_process_left_is_removed(tmp_path):
    # Of a process that is gone; no process has a number so large.
    (tmp_path / ".a.png.999999999.partial.png").write_bytes(b"half")
    files = {tmp_path / "a.png": tmp_path}
    convert_images(files, lambda _, target: write_png(target, PIXELS), folder=tmp_path, workers=1)
    assert names(tmp_path) == {"a.png"}


def test_an_error_stops_the_conversion(tmp_path):
    def convert(source: Path, target: Path) -> None:
        raise ValueError(f"{source}: wrong")

    files = {tmp_path / f"{n}.png": tmp_path / "source" for n in range(50)}
    with pytest.raises(ValueError, match="source: wrong"):
        convert_images(files, convert, folder=tmp_path, workers=2)


@pytest.fixture
def coco(tmp_path):
    """`run(stop_at)` converts to COCO, is interrupted at a key, and returns what it converted."""

    def run(stop_at: str = "", with_files: bool = True, keys=KEYS) -> list[str]:
        made: list[str] = []

        def convert(key: str, source: Path, png: Path) -> CocoPart:
            if key == stop_at:
                raise Interrupted
            made.append(key)
            if with_files:
                write_png(png, PIXELS)
            return CocoPart({"id": key}, [{"image_id": key, "number": n} for n in range(2)])

        convert_to_coco(
            {key: tmp_path for key in keys},
            convert,
            target=tmp_path / "all.json",
            categories=CATEGORIES,
            png_suffix=".png" if with_files else "",
            workers=1,
        )
        return made

    return run


@pytest.mark.parametrize("with_files", [True, False])
def test_an_interrupted_conversion_is_resumed(tmp_path, coco, with_files):
    with pytest.raises(Interrupted):
        coco("d", with_files)
    assert not (tmp_path / "all.json").exists()
    assert coco("", with_files) == ["d"]
    content = json.loads((tmp_path / "all.json").read_text())
    assert [image["id"] for image in content["images"]] == KEYS
    assert [a["image_id"] for a in content["annotations"]] == sorted(KEYS * 2)
    assert [a["id"] for a in content["annotations"]] == list(range(1, 9))
    assert content["categories"] == CATEGORIES
    assert names(tmp_path) == {"all.json"} | ({"all"} if with_files else set())
    assert coco("", with_files) == []


def test_a_line_cut_off_in_the_journal_is_made_again(tmp_path, coco):
    with pytest.raises(Interrupted):
        coco("d")
    journal = tmp_path / "all.json.partial"
    journal.write_text(journal.read_text()[:-9])
    assert coco() == ["c", "d"]


def test_missing_files_and_new_images_are_added(tmp_path, coco):
    coco(keys=KEYS[:3])
    before = json.loads((tmp_path / "all.json").read_text())
    (tmp_path / "all" / "b.png").unlink()
    assert coco() == ["b", "d"]
    after = json.loads((tmp_path / "all.json").read_text())
    assert after["annotations"][:6] == before["annotations"]
    assert len(after["images"]) == 4
