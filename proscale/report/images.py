"""The images that a model does best and worst, each with its truth, to look at.

Evaluators write the figure of every image; the few that are shown are predicted once more.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from proscale.data.formats.relabel import relabel
from proscale.data.mappers.truth import PanopticTruth, SemanticTruth
from proscale.errors import CheckpointError, RenderError
from proscale.predict import Prediction, Predictor
from proscale.predict.drawing import Drawing
from proscale.predict.page import gallery_item
from proscale.predict.predictor import read_rgb
from proscale.predict.result import from_annotation
from proscale.report.evaluations import Evaluation, ImageFigure

TASKS = {"panoptic_seg": "panoptic", "sem_seg": "semantic"}
"""Evaluated tasks with figures of images, and what a predictor calls them."""


def extremes(
    images: Sequence[ImageFigure], count: int
) -> tuple[list[ImageFigure], list[ImageFigure]]:
    """At most ``count`` best, from the best, and ``count`` worst, from the worst.

    Of few images none is both; those without a figure, in which nothing is annotated, are neither.
    """
    ordered = sorted(
        (image for image in images if math.isfinite(image.value)),
        key=lambda image: (image.value, image.file_name),
    )
    worst = ordered[: min(count, len(ordered) // 2)]
    best = ordered[len(worst) :][::-1][:count]
    return best, worst


class ImagePairs:
    """Draws images of a data set, prediction and truth.

    Args:
        cfg: of the run.
        weights: checkpoint.
        evaluation: that the images are of.

    Raises:
        RenderError: the model or the data set is not there, or they do not fit.
    """

    def __init__(self, cfg: CfgNode, weights: Path, evaluation: Evaluation) -> None:
        self._evaluation, self._task = evaluation, TASKS[evaluation.task]
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = (evaluation.dataset,)
        try:
            self._predictor = Predictor(cfg, weights, task=self._task)
            entries = DatasetCatalog.get(evaluation.dataset)
        # Detectron2's data sets assert that their files are there.
        except (CheckpointError, ValueError, OSError, AssertionError) as error:
            raise RenderError(str(error)) from error
        self._entries = {entry["file_name"]: entry for entry in entries}

    def draw(self, image: ImageFigure) -> Iterator[str]:
        """The prediction and, where the data set has it, the truth, as HTML for the viewer.

        Raises:
            RenderError: the image or its truth cannot be read.
        """
        name = Path(image.file_name).name
        try:
            pixels = read_rgb(image.file_name)
            prediction, truth = self._predictor(pixels), self._truth(image.file_name, pixels)
        except (OSError, ValueError) as error:
            raise RenderError(str(error)) from error
        label = f"{self._evaluation.metric} {image.value:.1f}"
        yield self._item(f"{label} · {name}", pixels, prediction)
        if truth is not None:
            yield self._item(f"truth · {name}", pixels, truth)

    def _item(self, name: str, pixels: np.ndarray, prediction: Prediction) -> str:
        drawing = Drawing.of(prediction, self._predictor.classes)
        return gallery_item(name, pixels, prediction, drawing)

    def _truth(self, file_name: str, pixels: np.ndarray) -> Prediction | None:
        entry: Mapping[str, Any] = self._entries.get(file_name, {})
        size, classes = pixels.shape[:2], self._predictor.classes
        if self._task == "semantic" and "sem_seg_file_name" in entry:
            ignored = MetadataCatalog.get(self._evaluation.dataset).ignore_label
            truth = SemanticTruth(num_classes=len(classes), ignore_label=ignored).read(entry, size)
            return from_annotation(self._task, truth.ids, truth.classes, classes)
        if "pan_seg_file_name" not in entry:
            return None
        truth = PanopticTruth().read(entry, size)
        if self._task == "panoptic":
            return from_annotation(self._task, truth.ids, truth.classes, classes)
        coded = {id_: truth.classes.get(id_, -1) + 1 for id_ in np.unique(truth.ids).tolist()}
        of_class = {label + 1: label for label in sorted(set(truth.classes.values()))}
        return from_annotation(self._task, relabel(truth.ids, coded, np.int32), of_class, classes)
