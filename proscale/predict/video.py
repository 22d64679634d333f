"""Frames of videos, in and out, by OpenCV."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from proscale.errors import DataError


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise DataError(f"{path}: not a readable video")
        yield capture
    finally:
        capture.release()


def probe_video(path: Path) -> tuple[int, float]:
    """The frames that can be read, and frames per second (25 where the video does not say); a
    DataError if there are none."""
    with _opened(path) as capture:
        # The number that a video states may be wrong.
        number = 0
        while capture.grab():
            number += 1
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    if not number:
        raise DataError(f"{path}: a video without a readable frame")
    return number, rate


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """The frames in turn, RGB ``(H, W, 3)`` uint8; a DataError if the video cannot be read."""
    with _opened(path) as capture:
        while True:
            is_there, frame = capture.read()
            if not is_there:
                return
            # OpenCV's order of channels is BGR.
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


class VideoWriter:
    """Writes an MP4 file frame by frame, ``rate`` a second; its size is that of the first one."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, rate
        self._writer: cv2.VideoWriter | None = None

    def add(self, frame: np.ndarray) -> None:
        """Add a frame, RGB ``(H, W, 3)`` uint8; an OSError if the file cannot be written."""
        if self._writer is None:
            # OpenCV has to know the size; the first frame tells it. MPEG-4 is what OpenCV's own
            # FFmpeg writes everywhere.
            height, width = frame.shape[:2]
            fourcc = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), fourcc, self._rate, (width, height))
            if not self._writer.isOpened():
                raise OSError(f"{self._path}: OpenCV cannot write this video")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            # Only now the file has its index, without which players refuse it.
            self._writer.release()
