"""A model's best and worst images by the evaluators' metrics, each beside its annotation."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from proscale.data.mappers.annotations import PanopticReader, SemanticReader
from proscale.errors import RenderError
from proscale.predict import Prediction, Predictor
from proscale.predict.page import gallery_item
from proscale.predict.pictures import drawing_of
from proscale.predict.predictor import read_rgb
from proscale.predict.result import from_annotation
from proscale.report.evaluations import Evaluation, ImageMetric
from proscale.report.run_folder import RunFolder
from proscale.report.tables import Cell, heading, table

# Evaluated tasks that have metrics of images, and their names for a predictor.
_TASKS = {"panoptic_seg": "panoptic", "sem_seg": "semantic"}


def images_html(run: RunFolder, count: int, missing: list[str]) -> str:
    """The ``count`` best and worst images of every data set, predicted by the latest weights.

    Those that cannot be drawn are named, with the reason in ``missing``.
    """
    parts = []
    # Views change predictions, and single images have no AP.
    scored = [e for e in run.evaluations if e.task in _TASKS and not e.has_views]
    if run.evaluations and not scored:
        missing.append("Best and worst images: AP and PCK are not defined for single images.")
    for evaluation in scored:
        subject = f"Best and worst images of {evaluation.dataset}, {evaluation.title.lower()}"
        if not evaluation.images:
            missing.append(f"{subject}: the evaluation wrote no metrics of images.")
            continue
        # Without model or data set the page names the images.
        pairs = None
        try:
            pairs = _ImagePairs(run, evaluation)
        except RenderError as error:
            missing.append(f"{subject}, are named only: {error}.")
        parts.append(heading(evaluation))
        for title, images in zip(
            ("Best", "Worst"), extremes(evaluation.images, count), strict=True
        ):
            rows: list[list[Cell]] = []
            drawn = []
            for image in images:
                # An image that cannot be read is named, and the others are drawn.
                try:
                    if pairs is not None:
                        drawn.append(f'<div class="pair">{"".join(pairs.draw(image))}</div>')
                        continue
                except RenderError as error:
                    missing.append(f"{Path(image.file_name).name} is not drawn: {error}.")
                rows.append([image.file_name, image.value])
            parts.append(f"<h4>{title}</h4>")
            if drawn:
                parts.append(f'<div class="pairs">{"".join(drawn)}</div>')
            if rows:
                parts.append(table(["image", evaluation.image_metric], rows))
    return "".join(parts)


def extremes(
    images: Sequence[ImageMetric], count: int
) -> tuple[list[ImageMetric], list[ImageMetric]]:
    """At most ``count`` best, from the best, and ``count`` worst, from the worst.

    Of few images none is both; those without a metric are neither.
    """
    # By name where metrics are equal: the page is the same whenever it is made.
    finite = (image for image in images if math.isfinite(image.value))
    ordered = sorted(finite, key=lambda image: (image.value, image.file_name))
    worst = ordered[: min(count, len(ordered) // 2)]
    best = ordered[len(worst) :][::-1][:count]
    return best, worst


class _ImagePairs:
    """Draws images; a RenderError if model or data set are not there, or do not fit."""

    def __init__(self, run: RunFolder, evaluation: Evaluation) -> None:
        if run.cfg is None:
            raise RenderError("there is no configuration of the model")
        if run.weights is None:
            raise RenderError("there are no weights in the folder")
        self._evaluation, self._task = evaluation, _TASKS[evaluation.task]
        # Classes have the names and colours of the data set that was evaluated.
        cfg = run.cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = (evaluation.dataset,)
        try:
            self._predictor = Predictor(cfg, run.weights, task=self._task)
            entries = DatasetCatalog.get(evaluation.dataset)
        # Detectron2's data sets assert that their files are there.
        except (ValueError, KeyError, OSError, AssertionError) as error:
            raise RenderError(str(error)) from error
        self._entries = {entry["file_name"]: entry for entry in entries}

    def draw(self, image: ImageMetric) -> Iterator[str]:
        """The prediction and, where the data set has it, the annotation, as HTML for the viewer."""
        name = Path(image.file_name).name
        # The run's files are somebody else's: they choose among the images of the data set.
        if image.file_name not in self._entries:
            raise RenderError(f"the data set {self._evaluation.dataset} has no such image")
        try:
            pixels = read_rgb(image.file_name)
            prediction = self._predictor(pixels)
            annotated = self._annotated(image.file_name, pixels)
        except (OSError, ValueError) as error:
            raise RenderError(str(error)) from error
        label = f"{self._evaluation.image_metric} {image.value:.1f}"
        for title, shown in ((label, prediction), ("truth", annotated)):
            if shown is not None:
                drawing = drawing_of(shown, self._predictor.classes)
                yield gallery_item(f"{title} · {name}", pixels, shown, drawing)

    def _annotated(self, file_name: str, pixels: np.ndarray) -> Prediction | None:
        entry: Mapping[str, Any] = self._entries[file_name]
        classes = self._predictor.classes
        size = (pixels.shape[0], pixels.shape[1])
        if self._task == "semantic" and "sem_seg_file_name" in entry:
            # Label images have class ids, and one value for pixels without a class.
            ignored = MetadataCatalog.get(self._evaluation.dataset).ignore_label
            reader = SemanticReader(num_classes=len(classes), ignore_label=ignored)
            found = reader.read(entry, size)
            return from_annotation(self._task, found.ids, found.classes, classes)
        if "pan_seg_file_name" not in entry:
            return None
        segments = PanopticReader().read(entry, size)
        if self._task == "panoptic":
            return from_annotation(self._task, segments.ids, segments.classes, classes)
        # Semantic models are evaluated on panoptic annotations, too: the segments of a class become
        # one, and 0 is no class.
        labels = np.zeros_like(segments.ids)
        for id_, class_id in segments.classes.items():
            labels[segments.ids == id_] = class_id + 1
        class_of = {class_id + 1: class_id for class_id in sorted(set(segments.classes.values()))}
        return from_annotation(self._task, labels, class_of, classes)
