import os
import random
from pathlib import Path

import pytest
import torch

from proscale.checkpoint import read_checkpoint
from proscale.errors import CheckpointError
from proscale.utils import whole_files
from proscale.utils.whole_files import find_damage, remove_partial, save_archive, write_atomically

CONTENT = {"model": {f"w{i}": torch.arange(9.0) + i for i in range(3)}, "iteration": 3}


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "model.pth"
    save_archive(path, CONTENT)
    return path


def equal(content: dict) -> bool:
    return content["iteration"] == 3 and all(
        torch.equal(content["model"][name], value) for name, value in CONTENT["model"].items()
    )


def test_what_was_saved_is_whole_and_read_by_pytorch(path):
    assert find_damage(path) is None
    assert equal(torch.load(path, weights_only=True))
    assert equal(read_checkpoint(path))
    assert [entry.name for entry in path.parent.iterdir()] == ["model.pth"]


def test_every_flipped_bit_is_found_or_changes_nothing(path):
    whole = path.read_bytes()
    generator = random.Random(0)
    harmless = 0
    for place in generator.sample(range(len(whole)), 800) + list(
        range(len(whole) - 120, len(whole))
    ):
        changed = bytearray(whole)
        changed[place] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        if find_damage(path) is None:
            harmless += 1
            assert equal(torch.load(path, weights_only=True))
    assert harmless < 20


def test_every_truncation_is_found(path):
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 61), *range(len(whole) - 120, len(whole))]:
        path.write_bytes(whole[:length])
        assert find_damage(path), length


def test_files_of_others_are_checked_by_their_checksums(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(CONTENT, path)
    assert find_damage(path) is None
    whole = path.read_bytes()
    place = whole.index(CONTENT["model"]["w1"].numpy().tobytes())
    path.write_bytes(whole[: place + 3] + b"\x55" + whole[place + 4 :])
    assert find_damage(path).startswith("the checksum of other/data/")
    with pytest.raises(CheckpointError, match=r"other\.pth: it is damaged: the checksum"):
        read_checkpoint(path)


def test_missing_file(tmp_path):
    assert find_damage(tmp_path / "none.pth") == "there is no such file"


@pytest.mark.parametrize("numbers", [1, 100_000])
def test_full_disk_leaves_the_old_file(path, numbers):
    before = path.read_bytes()
    Path(f"{path}.partial").symlink_to("/dev/full")  # takes nothing, as a full disk
    with pytest.raises(CheckpointError) as error:
        save_archive(path, {"model": {f"w{i}": torch.ones(numbers) for i in range(3)}})
    assert str(error.value) == (
        f"{path}: not written: No space left on device; what was written before is as it was"
    )
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["model.pth"]


def test_write_that_dies_leaves_the_old_file_and_is_cleaned_up(path, monkeypatch):
    class Death(BaseException):
        pass

    def die(*arguments):
        raise Death

    before = path.read_bytes()
    monkeypatch.setattr(whole_files.os, "replace", die)
    with pytest.raises(Death):
        write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == before
    assert remove_partial(path.parent) == ["model.pth.partial"]
    assert [entry.name for entry in path.parent.iterdir()] == ["model.pth"]


def test_content_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(whole_files.os, "fsync", lambda descriptor: order.append("sync"))
    replace = os.replace
    monkeypatch.setattr(
        whole_files.os, "replace", lambda *paths: (order.append("replace"), replace(*paths))
    )
    write_atomically(tmp_path / "file", lambda file: file.write(b"content"))
    assert order == ["sync", "replace", "sync"]
