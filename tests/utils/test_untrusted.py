"""Files that others made: their kind, size and folder."""

import os
import zipfile

import pytest
import torch

from proscale.errors import CheckpointError, ConfigError, DataError, MissingFileError, printable
from proscale.utils.untrusted import check_archive, check_regular, inside, os_error, read_bounded


def make(path, kind):
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "there is no such file"),
        ("folder", "it is a folder: expected a file"),
        ("pipe", "it is a pipe or device: expected a file"),
        ("link to a device", "it is a pipe or device: expected a file"),
        ("link to itself", "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_only_files_are_opened(tmp_path, kind, message):
    path = make(tmp_path / "x", kind)
    for read in (check_regular, lambda path, **key: read_bounded(path, limit=9, **key)):
        with pytest.raises(MissingFileError if kind == "nothing" else DataError) as error:
            read(path)
        assert str(error.value) == f"{path}: {message}"
        with pytest.raises(ConfigError):
            read(path, raises=ConfigError)


@pytest.mark.parametrize("name", ["a\0b", "n" * 300])
def test_impossible_names_are_a_sentence(tmp_path, name):
    with pytest.raises(DataError, match="cannot be read: ") as error:
        check_regular(tmp_path / name)
    assert "\0" not in str(error.value)


def test_files_are_read_up_to_their_limit(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert check_regular(path) == 5
    assert read_bounded(path, limit=5) == b"12345"
    with pytest.raises(DataError, match="it has 5 bytes: expected 4 or fewer"):
        read_bounded(path, limit=4)
    # The system says 0 bytes, and gives more.
    with pytest.raises(DataError, match="expected 4 or fewer"):
        read_bounded("/proc/self/status", limit=4)


def test_links_in_a_data_folder_are_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    assert read_bounded(inside(tmp_path / "data", "link"), limit=1) == b"x"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a\\..\\x", "/x", "https://x", "", "a\0", 5])
def test_names_stay_in_their_folder(name):
    with pytest.raises(DataError, match=r"^file_name of image 3 is .*: expected "):
        inside("data", name, "file_name of image 3")


def test_archives_are_bounded_before_they_are_read(tmp_path):
    honest, bomb = tmp_path / "honest.pth", tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(1000, 1000)}, honest)
    check_archive(honest)
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**24))
    with pytest.raises(CheckpointError, match="bytes unpack to 16777216: expected an archive"):
        check_archive(bomb)
    honest.write_bytes(b"no archive")
    check_archive(honest)


def test_messages_are_printable():
    assert printable("a\nb\x1b[2J\udcff\u202eé") == r"a\nb\x1b[2J\udcff\u202eé"
    assert printable("x" * 1000, 5) == "xxxx…"
    # Any error shows a file's name in one line.
    assert str(MissingFileError("a\n\udcff: there is no such file")).startswith(r"a\n\udcff")
    error = OSError(28, "No space left on device")
    assert (
        os_error(error, "a.png", "written") == "a.png: cannot be written: No space left on device"
    )
