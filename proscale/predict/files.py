"""Predicts files into a folder: reads ahead, keeps the model busy, and writes behind it."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from proscale.predict.drawing import Drawing
from proscale.predict.image_input import read_rgb
from proscale.predict.outputs import Failure, OutputFolder, Picture
from proscale.predict.predictor import Predictor
from proscale.predict.result import Prediction
from proscale.predict.sources import Source, UniqueNames
from proscale.predict.video import VideoWriter, count_frames, frame_rate, read_frames
from proscale.utils.background import BackgroundWorkers
from proscale.utils.whole_files import whole_file

VIDEO_SAMPLES = 8
"""Frames of a video, evenly spread, whose results are kept as those of images."""

Handle = Callable[[list[Picture], list[Prediction]], None]


def predict_files(
    predictor: Predictor,
    sources: Sequence[Source],
    output: OutputFolder,
    *,
    batch_size: int,
    workers: int,
) -> list[Failure]:
    """Predict images and videos and write everything that ``output`` has.

    A file that cannot be read is reported on the way and skipped.

    Args:
        predictor: the model.
        sources: see ``find_sources``.
        output: where to.
        batch_size: images that are in the model together, 1 or more.
        workers: threads that read, and as many that draw and write, 1 or more.

    Returns:
        the files that were skipped.
    """
    return _Run(predictor, output, batch_size, workers).predict(sources)


class _Run:
    def __init__(
        self, predictor: Predictor, output: OutputFolder, batch_size: int, workers: int
    ) -> None:
        self._predictor, self._output = predictor, output
        self._batch_size, self._workers = batch_size, workers
        self._failures: list[Failure] = []
        self._progress = tqdm(unit="image", disable=None)

    def predict(self, sources: Sequence[Source]) -> list[Failure]:
        images = [source for source in sources if not source.is_video]
        self._progress.total = len(images)
        self._predict_images(images)
        self._names = UniqueNames(source.name for source in sources)
        next_id = max((source.image_id for source in images), default=0) + 1
        for source in sources:
            if source.is_video:
                next_id = self._predict_video(source, next_id)
        self._progress.close()
        self._output.finish(self._failures)
        return self._failures

    def _predict_images(self, images: Sequence[Source]) -> None:
        writing = BackgroundWorkers(self._output.add, num_workers=self._workers)
        batches = _Batches(self._predictor, self._batch_size, self._write_each(writing))

        def receive(read: Picture | Failure) -> None:
            if isinstance(read, Failure):
                self._skip(read)
            else:
                batches.add(read)

        reading = BackgroundWorkers(receive, num_workers=self._workers)
        for source in images:
            reading.submit(partial(_read, source))
        reading.finish()
        batches.finish()
        writing.finish()

    def _write_each(self, writing: BackgroundWorkers) -> Handle:
        def handle(pictures: list[Picture], predictions: list[Prediction]) -> None:
            for picture, prediction in zip(pictures, predictions, strict=True):
                writing.submit(partial(self._output.write, picture, prediction))
                self._progress.update()

        return handle

    def _predict_video(self, source: Source, next_id: int) -> int:
        """Predict every frame; returns the id after those of the frames that are kept."""
        try:
            number = count_frames(source.path)
        except ValueError as error:
            self._progress.total += 1
            self._skip(Failure(str(source.path), _reason(error, source.path)))
            return next_id
        self._progress.total += number
        self._progress.refresh()
        samples = {number * (2 * i + 1) // (2 * VIDEO_SAMPLES) for i in range(VIDEO_SAMPLES)}
        ids = {frame: next_id + i for i, frame in enumerate(sorted(samples))}
        names = {frame: self._names.add(f"{source.name}_{frame:06d}") for frame in ids}
        with whole_file(self._output.video_path(source.name)) as path:
            video = VideoWriter(path, frame_rate(source.path))
            drawn = BackgroundWorkers(video.add, num_workers=self._workers)
            kept = BackgroundWorkers(self._output.add, num_workers=self._workers)

            def handle(pictures: list[Picture], predictions: list[Prediction]) -> None:
                for picture, prediction in zip(pictures, predictions, strict=True):
                    drawn.submit(partial(self._draw, picture.pixels, prediction))
                    if picture.image_id is not None:
                        kept.submit(partial(self._output.write, picture, prediction))
                    self._progress.update()

            batches = _Batches(self._predictor, self._batch_size, handle)
            for frame, pixels in enumerate(read_frames(source.path)):
                batches.add(
                    Picture(
                        file_name=f"{source.path}#{frame}",
                        name=names.get(frame),
                        image_id=ids.get(frame),
                        pixels=pixels,
                    )
                )
            batches.finish()
            drawn.finish()
            kept.finish()
            video.close()
        return next_id + len(ids)

    def _draw(self, pixels: np.ndarray, prediction: Prediction) -> np.ndarray:
        return Drawing.of(prediction, self._predictor.classes).over(pixels)

    def _skip(self, failure: Failure) -> None:
        self._failures.append(failure)
        tqdm.write(f"skipped {failure.file_name}: {failure.reason}", file=sys.stderr)
        self._progress.update()


class _Batches:
    """Predicts pictures as soon as there are enough of them."""

    def __init__(self, predictor: Predictor, size: int, handle: Handle) -> None:
        self._predictor, self._size, self._handle = predictor, size, handle
        self._waiting: list[Picture] = []

    def add(self, picture: Picture) -> None:
        self._waiting.append(picture)
        if len(self._waiting) == self._size:
            self.finish()

    def finish(self) -> None:
        """Predict those that are waiting, however few."""
        pictures, self._waiting = self._waiting, []
        self._handle(pictures, self._predictor([picture.pixels for picture in pictures]))


def _read(source: Source) -> Picture | Failure:
    file_name = str(source.path)
    try:
        return Picture(file_name, source.name, source.image_id, read_rgb(source.path))
    except (OSError, ValueError) as error:
        return Failure(file_name, _reason(error, source.path))


def _reason(error: Exception, path: Path) -> str:
    """What the error says, without the file that is named beside it."""
    return str(error).removeprefix(f"{path}: ")
