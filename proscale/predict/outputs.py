"""The folder of predictions: pictures, maps, JSON in COCO's formats, and the page."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from proscale.data.formats.image_file import write_panoptic_png
from proscale.predict.page import Gallery, gallery_item
from proscale.predict.pictures import drawing_of
from proscale.predict.result import ClassMetadata, Prediction, Segmentation
from proscale.utils.whole_files import try_file, try_folder, whole_file, write_text


@dataclass(frozen=True)
class Source:
    """A file to predict, or a frame of a video."""

    path: Path  # as the user gave it; of a frame, the video's with its number behind a #
    name: str  # of its results, without suffix; no two sources share one
    image_id: int | None  # in JSON files; videos have none, their frames do


@dataclass(frozen=True)
class Failure:
    """A file that could not be read, and why."""

    file_name: str
    reason: str


_COCO_FILES = {
    "panoptic": "panoptic.json",
    "instance": "instances.json",
    "detection": "detections.json",
    "keypoints": "keypoints.json",
}
"""By task, those for other tools, which evaluate them or train on them."""
# Tasks with an image of ids or classes for every image, in a folder named by the task.
_MAPS = ("panoptic", "semantic")

# An image's part in the files that cover all images: JSON of ours and of COCO, and the page's item.
Written = tuple[dict[str, Any], list[dict[str, Any]], str]


def try_output_folder(folder: Path, task: str) -> None:
    """Make the folders of an :class:`OutputFolder`, and refuse places that cannot be written.

    Raises:
        ConfigError: it has no place for a file or folder of predictions.
    """
    for name in ("overlays", *([task] if task in _MAPS else [])):
        try_folder(folder / name, "--output")
    for name in ("index.html", "predictions.json", *_COCO_FILES.values()):
        try_file(folder / name, "--output")


class OutputFolder:
    """A folder of predictions: a file or two for each image, JSON files for all, and the page.

    Every file appears when it is complete. Files of earlier runs are replaced one by one, and stay
    where there is nothing to replace them.

    Args:
        folder: is made if need be.
        task: of the predictions.
        classes, dataset: the model's classes, and the name of the data set that has them.
        title: of the page.

    Attributes:
        page: the file that shows everything.
    """

    def __init__(
        self, folder: Path, *, task: str, classes: ClassMetadata, dataset: str, title: str
    ) -> None:
        self._folder, self._task, self._classes = folder, task, classes
        self._dataset, self.page = dataset, folder / "index.html"
        try_output_folder(folder, task)
        self._records: list[dict[str, Any]] = []
        self._coco: list[dict[str, Any]] = []
        self._gallery = Gallery(self.page, title=title, subtitle=f"{task} · {dataset}")

    def video_path(self, name: str) -> Path:
        """The file of the video of this name."""
        folder = self._folder / "videos"
        try_folder(folder, "--output")
        return folder / f"{name}.mp4"

    def write(self, source: Source, pixels: np.ndarray, prediction: Prediction) -> Written:
        """Write the files of an image, ``(H, W, 3)`` uint8 RGB; several threads may."""
        # The drawing is made once, for the picture and for the page.
        drawing = drawing_of(prediction, self._classes)
        overlay = Image.fromarray(drawing.over(pixels))
        with whole_file(self._folder / "overlays" / f"{source.name}.jpg") as path:
            overlay.save(path, quality=90)
        id_map = prediction.id_map if isinstance(prediction, Segmentation) else None
        if id_map is not None:
            with whole_file(self._folder / self._task / f"{source.name}.png") as path:
                if self._task == "panoptic":
                    write_panoptic_png(path, id_map)
                elif len(self._classes) <= 256:
                    # Viewers show the palette's colours, readers get class ids.
                    labels = Image.fromarray(id_map.astype(np.uint8))
                    labels.putpalette([channel for c in self._classes.colors for channel in c])
                    labels.save(path)
                else:
                    # A palette has 256 colours; more classes are grey values of 16 bits.
                    Image.fromarray(id_map.astype(np.uint16)).save(path)
        record = {
            "id": source.image_id,
            "file_name": str(source.path),
            "name": source.name,
            "height": prediction.height,
            "width": prediction.width,
            "segments" if isinstance(prediction, Segmentation) else "objects": [
                asdict(one) for one in prediction.objects
            ],
        }
        item = gallery_item(source.name, pixels, prediction, drawing)
        coco = prediction.to_coco(source.image_id or 0, f"{source.name}.png")
        return record, coco, item

    def add(self, written: Written) -> None:
        """Add the result of :meth:`write`, in the order of the page."""
        record, coco, item = written
        self._records.append(record)
        self._coco += coco
        self._gallery.add(item)

    def finish(self, failures: Sequence[Failure]) -> None:
        """Write the files that cover all images."""
        classes = self._classes
        columns = (classes.category_ids, classes.names, classes.isthing, classes.colors)
        categories: list[dict[str, Any]] = [
            {"id": id_, "name": name, "isthing": int(isthing), "color": list(color)}
            for id_, name, isthing, color in zip(*columns, strict=True)
        ]
        predictions = {
            "task": self._task,
            "dataset": self._dataset,
            "categories": categories,
            "images": self._records,
            "skipped": [asdict(failure) for failure in failures],
        }
        if classes.skeleton is not None:
            # COCO counts keypoints from 1.
            links = [[start + 1, end + 1] for start, end in classes.skeleton.links]
            for category in categories:
                category |= {"keypoints": list(classes.skeleton.names), "skeleton": links}
        self._write_json("predictions.json", predictions)
        coco: Any = self._coco
        if self._task == "panoptic":
            keys = ("id", "file_name", "height", "width")
            images = [{key: record[key] for key in keys} for record in self._records]
            coco = {"images": images, "annotations": self._coco, "categories": categories}
        if self._task in _COCO_FILES:
            self._write_json(_COCO_FILES[self._task], coco)
        # Names of files without their folders: a page may be sent to others.
        self._gallery.finish([f"{Path(one.file_name).name}: {one.reason}" for one in failures])

    def _write_json(self, name: str, content: Any) -> None:
        write_text(self._folder / name, json.dumps(content) + "\n")
