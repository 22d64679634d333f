"""A file that is written as a whole, or not at all."""

import os

import pytest

from proscale.utils import whole_files
from proscale.utils.whole_files import partial_path, remove_partial, whole_file


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    with whole_file(target) as path:
        assert path.suffix == ".txt"
        path.write_text("new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_write_that_dies_leaves_the_old_file_and_is_cleaned_up(tmp_path, monkeypatch):
    class Death(BaseException):
        pass

    def die(*arguments, **options):
        raise Death

    target = tmp_path / "model.pth"
    target.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(whole_files.os, "replace", die)
        patch.setattr(whole_files.Path, "unlink", die)  # a dead process does not clean up
        with pytest.raises(Death), whole_file(target) as path:
            path.write_text("new")
    assert target.read_text() == "old"
    assert remove_partial(tmp_path) == [partial_path(target).name]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pth"]


def test_content_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(whole_files.os, "fsync", lambda descriptor: order.append("sync"))
    replace = os.replace
    monkeypatch.setattr(
        whole_files.os, "replace", lambda *paths: (order.append("replace"), replace(*paths))
    )
    with whole_file(tmp_path / "file", durable=True) as path:
        path.write_bytes(b"content")
    assert order == ["sync", "replace", "sync"]


@pytest.mark.parametrize(
    "name",
    ["mine.partial", ".mine.partial", ".model.pth.partial.pth", ".a.12x.partial", ".12.partial"],
)
def test_files_of_others_stay(tmp_path, name):
    (tmp_path / name).touch()
    assert remove_partial(tmp_path, is_locked=True) == []
    assert (tmp_path / name).exists()


def test_files_of_living_processes_stay_unless_the_folder_is_locked(tmp_path):
    left = tmp_path / f".model.pth.{os.getppid()}.partial.pth"
    left.touch()
    assert remove_partial(tmp_path) == []
    assert remove_partial(tmp_path, is_locked=True) == [left.name]
