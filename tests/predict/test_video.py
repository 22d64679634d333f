"""Videos written and read."""

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


def test_no_video(tmp_path):
    (tmp_path / "clip.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"clip\.mp4: not a readable video"):
        probe_video(tmp_path / "clip.mp4")


def test_cannot_write(tmp_path):
    video = VideoWriter(tmp_path / "missing" / "clip.mp4", 10.0)
    with pytest.raises(OSError, match="cannot write"):
        video.add(np.zeros((48, 64, 3), np.uint8))
