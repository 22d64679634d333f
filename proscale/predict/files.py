"""Predicts files into a folder: finds them, reads ahead, predicts, and writes behind the model."""

import errno
import glob
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from proscale.data.formats.semantic_folders import IMAGE_SUFFIXES
from proscale.errors import ConfigError, DataError, OutputError, printable
from proscale.predict.outputs import Failure, OutputFolder, Source, Written
from proscale.predict.pictures import drawing_of
from proscale.predict.predictor import Predictor, read_rgb
from proscale.predict.result import Prediction
from proscale.predict.video import VideoWriter, probe_video, read_frames
from proscale.utils.background import BackgroundWorkers
from proscale.utils.whole_files import whole_file

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")

T = TypeVar("T")

# Frames of a video, evenly spread, whose results are kept as those of images.
VIDEO_SAMPLES = 8
_SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)

# Control characters, and bytes of a file's name that are not UTF-8, as Python has them.
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NAME_BYTES = 180  # of the 255 that file systems take
_NOBODY = np.zeros((0, 5))  # boxes of persons
# After these errors no file can be written.
_FINAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def find_sources(inputs: Sequence[str], *, leave_out: Path) -> list[Source]:
    """The files of a user's inputs, each once, those of a folder or pattern ordered by name.

    A second file ``street.png`` has the name ``street_2``, and so on. Names that are long, or hold
    control characters or bytes that are no text, are made shorter and simpler.

    Args:
        inputs: images, videos, folders (all images and videos below them), and patterns with ``*``,
            ``?``, ``[…]`` and ``**``.
        leave_out: folder whose files are not taken from folders and patterns: where results go.

    Raises:
        ConfigError: an input names nothing.
    """
    # A file that several inputs name is predicted once, at its first place.
    paths = list(dict.fromkeys(path for text in inputs for path in _files(text, leave_out)))
    images = [path for path in paths if path.suffix.lower() not in VIDEO_SUFFIXES]
    # A name that is a number, as COCO's, is the id; others are numbered on from the highest.
    first: dict[int, Path] = {}
    for path in images:
        # Other programs read ids as 64 bits.
        if path.stem.isdecimal() and len(path.stem) < 19:
            first.setdefault(int(path.stem), path)
    ids = {path: number for number, path in first.items()}
    others = [path for path in images if path not in ids]
    ids |= zip(others, itertools.count(max(first, default=0) + 1), strict=False)
    taken: set[str] = set()
    return [Source(path, unique_name(_simple(path.stem), taken), ids.get(path)) for path in paths]


def unique_name(name: str, taken: set[str]) -> str:
    """``name``, or with ``_2``, ``_3``, … behind it, unlike those in ``taken``; joins them.

    Names are compared in lower case: many file systems do not tell upper from lower.
    """
    candidate, number = name, 1
    while candidate.casefold() in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate.casefold())
    return candidate


def _simple(name: str) -> str:
    """``name`` with nothing but text in it, and short enough for all that is put behind it."""
    return _NO_TEXT.sub("_", name).encode()[:_NAME_BYTES].decode(errors="ignore")


def _files(text: str, leave_out: Path) -> list[Path]:
    # By os.path: pathlib raises errors for unknown users and for names that are too long.
    path = Path(os.path.expanduser(text))
    # A named file is read with any suffix; the error of its reader is better than none.
    if os.path.isfile(path):
        return [path]
    if text and os.path.isdir(path):
        matches = sorted(path.rglob("*"))
    elif glob.has_magic(text) and "\0" not in text:
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    else:
        raise ConfigError(
            f"INPUT is {text}: there is no such file: expected images, videos, folders and patterns"
        )
    # Results of an earlier run may lie in the folder that is predicted.
    results = leave_out.resolve()
    found = [
        match
        for match in matches
        if match.suffix.lower() in _SUFFIXES
        and match.is_file()
        and results not in match.resolve().parents
    ]
    if not found:
        raise ConfigError(f"INPUT is {text}: no images or videos: expected {', '.join(_SUFFIXES)}")
    return found


def first_image(sources: Sequence[Source]) -> np.ndarray:
    """RGB colours ``(H, W, 3)`` uint8 of the first image, or frame of a video, that can be read.

    Raises:
        DataError: there is none.
    """
    for source in sources:
        try:
            is_video = source.image_id is None
            return next(read_frames(source.path)) if is_video else read_rgb(source.path)
        except (OSError, DataError, StopIteration):
            # Reported when all files are predicted.
            continue
    raise DataError(f"INPUT has {len(sources)} files: none of them can be read")


class _Waiting(NamedTuple):
    """An image that waits for a full batch, and what receives its prediction."""

    pixels: np.ndarray
    receive: Callable[[Prediction], None]
    image_id: int | None


class FilePredictor:
    """Predicts images and videos and writes everything that ``output`` has.

    Args:
        predictor, output: the model, and where to.
        batch_size: images that are in the model together, 1 or more.
        workers: threads that read, and as many that draw and write, 1 or more.
        boxes: for a pose estimator, those of the persons by ``Source.image_id``; there are no
            persons in other images. None leaves it to the predictor to find them.
    """

    def __init__(
        self,
        predictor: Predictor,
        output: OutputFolder,
        *,
        batch_size: int,
        workers: int,
        boxes: Mapping[Any, np.ndarray] | None = None,
    ) -> None:
        self._predictor, self._output, self._workers = predictor, output, workers
        self._batch_size = batch_size
        self._waiting: list[_Waiting] = []
        self._boxes = boxes
        self._writing = BackgroundWorkers(self._receive, num_workers=workers)
        self._failures: list[Failure] = []
        self._progress = tqdm(unit="image", disable=None)

    def predict(self, sources: Sequence[Source]) -> list[Failure]:
        """Predict the files, and return those that could not be read or written, told on the way.

        Raises:
            OutputError: no file can be written any more, as when the disk is full.
        """
        images = [source for source in sources if source.image_id is not None]
        self._predict_images(images)
        # Frames of videos have names and ids behind those of all images.
        taken = {source.name.casefold() for source in sources}
        ids = itertools.count(max((source.image_id or 0 for source in images), default=0) + 1)
        for source in sources:
            if source.image_id is None:
                try:
                    self._predict_video(source, taken, ids)
                except (DataError, OutputError) as error:
                    self._skip(source, error)
        self._progress.close()
        self._output.finish(self._failures)
        return self._failures

    def _predict_images(self, images: Sequence[Source]) -> None:
        self._expect(len(images))

        def receive(read: tuple[Source, np.ndarray | Exception]) -> None:
            source, pixels = read
            if isinstance(pixels, Exception):
                self._skip(source, pixels)
            else:
                self._add(pixels, partial(write, source, pixels), source.image_id)

        def write(source: Source, pixels: np.ndarray, prediction: Prediction) -> None:
            task = partial(self._output.write, source, pixels, prediction)
            self._writing.submit(partial(_attempt, source, task))

        # Threads read ahead; this one predicts; others draw and write behind it.
        reading = BackgroundWorkers(receive, num_workers=self._workers)
        for source in images:
            reading.submit(partial(_attempt, source, partial(read_rgb, source.path)))
        reading.finish()
        self._predict_waiting()
        self._writing.finish()

    def _predict_video(self, source: Source, taken: set[str], ids: Iterator[int]) -> None:
        """Predict every frame into a video; some frames have results like images."""
        number, rate = probe_video(source.path)
        self._expect(number)
        # Of as many stretches of equal length the frames in the middle.
        samples = {number * (2 * i + 1) // (2 * VIDEO_SAMPLES) for i in range(VIDEO_SAMPLES)}
        kept = {}
        for frame in sorted(samples):
            name = unique_name(f"{source.name}_{frame:06d}", taken)
            kept[frame] = Source(Path(f"{source.path}#{frame}"), name, next(ids))

        def draw(pixels: np.ndarray, prediction: Prediction) -> np.ndarray:
            return drawing_of(prediction, self._predictor.classes).over(pixels)

        with whole_file(self._output.video_path(source.name)) as path:
            # Frames are drawn in parallel, and come to the video in their order.
            video = VideoWriter(path, rate)
            drawing = BackgroundWorkers(video.add, num_workers=self._workers)

            def receive(frame: int, pixels: np.ndarray, prediction: Prediction) -> None:
                drawing.submit(partial(draw, pixels, prediction))
                if (one := kept.get(frame)) is not None:
                    write = partial(self._output.write, one, pixels, prediction)
                    # An error of a frame is one of its video.
                    self._writing.submit(lambda: (one, write()))
                else:
                    self._progress.update()

            try:
                for frame, pixels in enumerate(read_frames(source.path)):
                    self._add(pixels, partial(receive, frame, pixels))
                self._predict_waiting()
                drawing.finish()
                self._writing.finish()
            finally:
                # Of a video that breaks off no frame may reach the next one.
                self._waiting.clear()
                drawing.cancel()
                self._writing.cancel()
            video.close()

    def _add(
        self,
        pixels: np.ndarray,
        receive: Callable[[Prediction], None],
        image_id: int | None = None,
    ) -> None:
        """Predict the image as soon as there are enough of them, and hand the prediction on."""
        self._waiting.append(_Waiting(pixels, receive, image_id))
        if len(self._waiting) == self._batch_size:
            self._predict_waiting()

    def _predict_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        boxes = None
        if self._boxes is not None:
            # No persons in an image that the file does not have.
            boxes = [self._boxes.get(one.image_id, _NOBODY) for one in waiting]
        predictions = self._predictor([one.pixels for one in waiting], boxes)
        for one, prediction in zip(waiting, predictions, strict=True):
            one.receive(prediction)

    def _receive(self, written: tuple[Source, Written | Exception]) -> None:
        source, result = written
        if isinstance(result, Exception):
            self._skip(source, result)
        else:
            self._output.add(result)
            self._progress.update()

    def _expect(self, number: int) -> None:
        """Count this many images as work to do."""
        self._progress.total = (self._progress.total or 0) + number
        self._progress.refresh()

    def _skip(self, source: Source, error: Exception) -> None:
        # The reason stands beside the file's name wherever it is shown.
        name = printable(source.path, limit=None)
        failure = Failure(str(source.path), str(error).removeprefix(f"{name}: "))
        self._failures.append(failure)
        reason = printable(failure.reason, limit=None)
        tqdm.write(f"skipped {name}: {reason}", file=sys.stderr)
        # What one file cannot have, such as its name, others may.
        if isinstance(error, OutputError) and getattr(error.__cause__, "errno", 0) in _FINAL:
            raise error
        self._progress.update()


def _attempt(source: Source, task: Callable[[], T]) -> tuple[Source, T | Exception]:
    """The result of reading or writing a file, or the reason why there is none."""
    try:
        return source, task()
    except (OSError, DataError, OutputError) as error:
        return source, error
