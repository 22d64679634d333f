"""Videos written and read."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from proscale.errors import DataError
from proscale.predict.video import VideoWriter, probe_video, read_frames


def test_round_trip(tmp_path):
    video = VideoWriter(tmp_path / "clip.mp4", 10.0)
    for grey in (40, 120, 200):
        video.add(np.full((48, 64, 3), (grey, 0, 0), np.uint8))
    video.close()
    frames = list(read_frames(tmp_path / "clip.mp4"))
    number, rate = probe_video(tmp_path / "clip.mp4")
    assert number == len(frames) == 3
    assert rate == pytest.approx(10.0)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    reds = [frame[..., 0].mean() for frame in frames]
    assert reds == pytest.approx([40, 120, 200], abs=12)
    assert frames[2][..., 2].mean() < 40  # red has stayed red


def write(path, sizes, codec="mp4v"):
    for size in sizes:
        fourcc = cv2.VideoWriter.fourcc(*codec)
        video = cv2.VideoWriter(str(path), fourcc, 10.0, size)
        for _ in range(3):
            video.write(np.zeros((*size[::-1], 3), np.uint8))
        video.release()


PLAYLIST = "#EXTM3U\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n"

# What is in the file, and what is told.
NO_VIDEOS = {
    "text": (b"no video", "expected MP4, MOV, AVI, MKV or WebM"),
    "nothing": (b"", "expected MP4, MOV, AVI, MKV or WebM"),
    "a playlist": (PLAYLIST, "expected MP4, MOV, AVI, MKV or WebM"),
    "a list of files": ("ffconcat version 1.0\nfile {name}\n", "expected MP4, MOV, AVI, MKV"),
    "a session": ("v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", "expected MP4, MOV"),
    "a head alone": (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "not a readable video"),
    "no AVI": (b"RIFF\0\0\0\0WAVE", "not a readable video"),
}


@pytest.mark.parametrize("name", NO_VIDEOS)
def test_no_video(tmp_path, name):
    content, message = NO_VIDEOS[name]
    write(tmp_path / "other.mp4", [(64, 48)])
    path = tmp_path / "clip.mp4"
    if isinstance(content, str):
        content = content.format(other=tmp_path / "other.mp4", name="other.mp4").encode()
    path.write_bytes(content)
    for read in (probe_video, lambda path: list(read_frames(path))):
        with pytest.raises(DataError, match=rf"^{path}: not a readable video.*") as error:
            read(path)
        assert message in str(error.value)


def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(DataError, match="it is a pipe or device"):
        probe_video(tmp_path / "clip.mp4")


def test_frames_have_the_budget_of_images(tmp_path, monkeypatch):
    write(tmp_path / "clip.mp4", [(64, 48)])
    monkeypatch.setenv("PROSCALE_MAX_IMAGE_BYTES", str(30 * 64 * 48))
    assert probe_video(tmp_path / "clip.mp4")[0] == 3
    monkeypatch.setenv("PROSCALE_MAX_IMAGE_BYTES", str(30 * 64 * 48 - 1))
    with pytest.raises(DataError, match=r"has \(height, width\) \(48, 64\), 92160 bytes"):
        probe_video(tmp_path / "clip.mp4")


def test_frames_have_the_size_of_the_first(tmp_path, monkeypatch):
    shapes = [(48, 64, 3), (24, 32, 3)]
    frames = [(True, np.zeros(shape, np.uint8)) for shape in shapes]
    frames.append((False, None))
    write(tmp_path / "clip.mp4", [(64, 48)])
    real = cv2.VideoCapture

    class Changing:
        def __init__(self, path):
            self.get = real(path).get

        isOpened, release = (lambda self: True), (lambda self: None)

        def read(self):
            return frames.pop(0)

    monkeypatch.setattr(cv2, "VideoCapture", Changing)
    assert [frame.shape for frame in read_frames(tmp_path / "clip.mp4")] == [(48, 64, 3)] * 2


def test_names_are_no_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "concat:other.mp4", [(64, 48)])
    assert probe_video(Path("concat:other.mp4"))[0] == 3


def test_cannot_write(tmp_path):
    video = VideoWriter(tmp_path / "missing" / "clip.mp4", 10.0)
    with pytest.raises(OSError, match="cannot write"):
        video.add(np.zeros((48, 64, 3), np.uint8))
