"""Frames of videos, in and out, by OpenCV."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from proscale.data.formats.image_file import check_size
from proscale.errors import DataError
from proscale.utils.untrusted import check_regular

# The containers that are read, by their bytes from the fifth or the first on. Others are not handed
# to FFmpeg: it takes a playlist for a video, and opens the files and addresses in it.
_MP4 = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_AVI, _MATROSKA = b"RIFF", b"\x1aE\xdf\xa3"
# Memory for a pixel: of the colours here and in OpenCV, and of the frames that codecs look back on.
_PIXEL_BYTES = 30
# Frames per second of a video that states none, or none that can be.
_RATE, _MAX_RATE = 25.0, 1000.0

# FFmpeg's own lines would stand between those of a command.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    check_regular(path)
    with path.open("rb") as file:
        start = file.read(8)
    if start[4:] not in _MP4 and start[:4] not in (_AVI, _MATROSKA):
        raise DataError(f"{path}: not a readable video: expected MP4, MOV, AVI, MKV or WebM")
    # Absolute, since FFmpeg takes a name with a colon for an address.
    capture = cv2.VideoCapture(os.path.abspath(path))
    try:
        if not capture.isOpened():
            raise DataError(f"{path}: not a readable video")
        width, height = (
            int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        check_size(height, width, str(path), _PIXEL_BYTES)
        yield capture
    except cv2.error as error:
        raise DataError(f"{path}: not a readable video ({error.err})") from error
    finally:
        capture.release()


def probe_video(path: Path) -> tuple[int, float]:
    """The frames that can be read, and frames per second (25 where the video does not say).

    Raises:
        DataError: it is no video that can be read, has no frames, or frames too large.
    """
    with _opened(path) as capture:
        # The number that a video states may be wrong.
        number = 0
        while capture.grab():
            number += 1
        rate = capture.get(cv2.CAP_PROP_FPS)
    if not number:
        raise DataError(f"{path}: a video without a readable frame")
    return number, rate if 0 < rate <= _MAX_RATE else _RATE


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """The frames in turn, RGB ``(H, W, 3)`` uint8, in the size of the first; a DataError as from
    :func:`probe_video`."""
    size = None
    with _opened(path) as capture:
        while True:
            is_there, frame = capture.read()
            if not is_there:
                return
            # A video may change its size, which players do not show.
            size = size or frame.shape
            if frame.shape != size:
                frame = cv2.resize(frame, size[1::-1])
            # OpenCV's order of channels is BGR.
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


class VideoWriter:
    """Writes an MP4 file frame by frame, ``rate`` a second; its size is that of the first one."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, rate
        self._writer: cv2.VideoWriter | None = None
        self._number = 0

    def add(self, frame: np.ndarray) -> None:
        """Add a frame, RGB ``(H, W, 3)`` uint8; an OSError if the file cannot be written."""
        if self._writer is None:
            # OpenCV has to know the size; the first frame tells it. MPEG-4 is what OpenCV's own
            # FFmpeg writes everywhere.
            height, width = frame.shape[:2]
            fourcc = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._path), fourcc, self._rate, (width, height))
            if not self._writer.isOpened():
                raise OSError("OpenCV cannot write a video of this name and size")
        self._number += 1
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file; an OSError if it is not complete."""
        if self._writer is not None:
            # Only now the file has its index, without which players refuse it.
            self._writer.release()
            # OpenCV does not tell that the disk is full.
            written = cv2.VideoCapture(str(self._path)).get(cv2.CAP_PROP_FRAME_COUNT)
            if written != self._number:
                raise OSError(f"OpenCV wrote {max(written, 0):.0f} of {self._number} frames")
