"""The files that predictions become, and the COCO formats among them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from proscale.data.formats.panoptic_png import write_panoptic_png
from proscale.predict.classes import Classes
from proscale.predict.drawing import Drawing
from proscale.predict.gallery import Gallery, gallery_item
from proscale.predict.result import Prediction, Segment
from proscale.utils.whole_files import whole_file

OVERLAYS, PANOPTIC, SEMANTIC, VIDEOS = "overlays", "panoptic", "semantic", "videos"
"""Folders of the results: pictures, and the maps of the tasks."""

PREDICTIONS_FILE, PANOPTIC_FILE, INSTANCES_FILE = (
    "predictions.json",
    "panoptic.json",
    "instances.json",
)

PAGE = "index.html"

_OVERLAY_QUALITY = 90


@dataclass(frozen=True)
class Picture:
    """An image that was read.

    Attributes:
        file_name: as the user gave it; of a frame, the video's with its number behind a ``#``.
        name: of its results, without suffix; None for a frame that has none but in a video.
        image_id: in JSON files; None for such a frame.
        pixels: ``(H, W, 3)`` uint8 RGB.
    """

    file_name: str
    name: str | None
    image_id: int | None
    pixels: np.ndarray


@dataclass(frozen=True)
class Failure:
    """A file that could not be read, and why."""

    file_name: str
    reason: str


@dataclass(frozen=True)
class Written:
    """What remains to be written once the files of an image are there."""

    record: dict[str, Any]
    coco: list[dict[str, Any]]
    item: str


class OutputFolder:
    """A folder of predictions: a file or two for each image, JSON files for all, and the page.

    Every file appears when it is complete. Files of earlier runs are replaced one by one, and stay
    where there is nothing to replace them.

    Args:
        folder: is made if need be.
        task: of the predictions.
        classes: the model's.
        dataset: name of the data set whose classes they are.
        title: of the page.
    """

    def __init__(
        self, folder: Path, *, task: str, classes: Classes, dataset: str, title: str
    ) -> None:
        self._folder, self._task, self._classes = folder, task, classes
        self._dataset = dataset
        for name in (OVERLAYS, *({task} & {PANOPTIC, SEMANTIC})):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._records: list[dict[str, Any]] = []
        self._coco: list[dict[str, Any]] = []
        self._gallery = Gallery(folder / PAGE, title=title, subtitle=f"{task} · {dataset}")

    @property
    def page(self) -> Path:
        """The page that shows everything."""
        return self._folder / PAGE

    def video_path(self, name: str) -> Path:
        """Where the video of this name belongs."""
        (self._folder / VIDEOS).mkdir(exist_ok=True)
        return self._folder / VIDEOS / f"{name}.mp4"

    def write(self, picture: Picture, prediction: Prediction) -> Written:
        """Write the files of an image; several threads may."""
        drawing = Drawing.of(prediction, self._classes)
        overlay = Image.fromarray(drawing.over(picture.pixels))
        with whole_file(self._folder / OVERLAYS / f"{picture.name}.jpg") as path:
            overlay.save(path, quality=_OVERLAY_QUALITY)
        if self._task in (PANOPTIC, SEMANTIC):
            with whole_file(self._folder / self._task / f"{picture.name}.png") as path:
                self._write_map(path, prediction)
        record = {
            "id": picture.image_id,
            "file_name": picture.file_name,
            "name": picture.name,
            "height": prediction.height,
            "width": prediction.width,
            "segments": [asdict(segment) for segment in prediction.segments],
        }
        coco = {"panoptic": _panoptic_annotations, "instance": _instance_results}
        entries = coco[self._task](picture, prediction) if self._task in coco else []
        return Written(
            record, entries, gallery_item(picture.name, picture.pixels, prediction, drawing)
        )

    def add(self, written: Written) -> None:
        """Take what :meth:`write` returned, in the order of the page."""
        self._records.append(written.record)
        self._coco += written.coco
        self._gallery.add(written.item)

    def finish(self, failures: Sequence[Failure]) -> None:
        """Write what covers all images."""
        skipped = [asdict(failure) for failure in failures]
        self._write_json(
            PREDICTIONS_FILE,
            {
                "task": self._task,
                "dataset": self._dataset,
                "categories": self._categories(),
                "images": self._records,
                "skipped": skipped,
            },
        )
        if self._task == "panoptic":
            keys = ("id", "file_name", "height", "width")
            images = [{key: record[key] for key in keys} for record in self._records]
            self._write_json(
                PANOPTIC_FILE,
                {"images": images, "annotations": self._coco, "categories": self._categories()},
            )
        elif self._task == "instance":
            self._write_json(INSTANCES_FILE, self._coco)
        self._gallery.finish(
            [f"{Path(failure.file_name).name}: {failure.reason}" for failure in failures]
        )

    def _write_map(self, path: Path, prediction: Prediction) -> None:
        if self._task == PANOPTIC:
            write_panoptic_png(path, prediction.id_map)
        elif len(self._classes) <= 256:
            labels = Image.fromarray(prediction.id_map.astype(np.uint8))
            labels.putpalette([channel for color in self._classes.colors for channel in color])
            labels.save(path)
        else:
            Image.fromarray(prediction.id_map.astype(np.uint16)).save(path)

    def _categories(self) -> list[dict[str, Any]]:
        columns = (
            self._classes.category_ids,
            self._classes.names,
            self._classes.isthing,
            self._classes.colors,
        )
        return [
            {"id": id_, "name": name, "isthing": int(isthing), "color": list(color)}
            for id_, name, isthing, color in zip(*columns, strict=True)
        ]

    def _write_json(self, name: str, content: Any) -> None:
        with whole_file(self._folder / name) as path:
            path.write_text(json.dumps(content) + "\n")


def _panoptic_annotations(picture: Picture, prediction: Prediction) -> list[dict[str, Any]]:
    """The image's annotation in COCO's panoptic format."""
    segments = [
        {
            "id": segment.id,
            "category_id": segment.category_id,
            "area": segment.area,
            "bbox": _coco_box(segment),
            "iscrowd": 0,
            "score": segment.score,
        }
        for segment in prediction.segments
    ]
    file_name = f"{picture.name}.png"
    return [{"image_id": picture.image_id, "file_name": file_name, "segments_info": segments}]


def _instance_results(picture: Picture, prediction: Prediction) -> list[dict[str, Any]]:
    """The image's instances in COCO's results format."""
    return [
        {
            "image_id": picture.image_id,
            "category_id": segment.category_id,
            "bbox": _coco_box(segment),
            "score": segment.score,
            "segmentation": {**code, "counts": code["counts"].decode("ascii")},
        }
        for segment, code in zip(prediction.segments, prediction.codes, strict=True)
    ]


def _coco_box(segment: Segment) -> list[int]:
    left, top, right, bottom = segment.box
    return [left, top, right - left, bottom - top]
