"""A file that is replaced: whole, or not at all."""

import pytest

from proscale.utils.replaced_file import LEFTOVERS, replaced


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), replaced(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    with replaced(target) as path:
        path.write_text("new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_dead_process_left_is_recognised(tmp_path):
    with replaced(tmp_path / "file.txt") as path:
        path.write_text("half")
        assert list(tmp_path.glob(LEFTOVERS)) == [path]
