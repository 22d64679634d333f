"""Results as the evaluators wrote them: metrics of data sets, classes and images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from proscale.data.formats.json_file import read_json
from proscale.engine.trainer import RESULTS_FILE, RESULTS_TTA_FILE
from proscale.errors import DataError
from proscale.evaluation import panoptic_evaluator, pose_evaluator, semantic_evaluator
from proscale.utils.untrusted import inside

HEADLINES = {
    "panoptic_seg": ("Panoptic segmentation", ("PQ",)),
    "segm": ("Instance masks", ("AP",)),
    "boundary": ("Instance boundaries", ("AP",)),
    "bbox": ("Boxes", ("AP",)),
    "sem_seg": ("Semantic segmentation", ("mIoU",)),
    "keypoints": ("Keypoints", ("AP", "PCK@0.1")),
}
"""By task its title and its main metrics."""


class _Details(NamedTuple):
    """The files of an evaluator."""

    results: str
    key: str  # of the list of classes in it
    images: str  # empty where images have no metric
    image_metric: str
    noun: str = "classes"  # what the list has


_DETAILS = {
    "panoptic_seg": _Details(
        panoptic_evaluator.RESULTS_FILE, "per_category", panoptic_evaluator.IMAGES_FILE, "PQ"
    ),
    "sem_seg": _Details(
        semantic_evaluator.RESULTS_FILE, "per_class", semantic_evaluator.IMAGES_FILE, "mIoU"
    ),
    "keypoints": _Details(pose_evaluator.RESULTS_FILE, "per_keypoint", "", "", "keypoints"),
}
# Whose boxes the persons were in, which the results have beside the metrics.
_BOXES = ("", pose_evaluator.TRUE_BOXES, pose_evaluator.DETECTED_BOXES)
_MAX_NUMBER = 2**53


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of a class or a keypoint; nan where it did not occur. ``kind`` is thing, stuff or
    unknown, ""."""

    name: str
    kind: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class ImageMetric:
    """The metric of an image by itself, in percent; nan where nothing is annotated."""

    file_name: str
    value: float


@dataclass(frozen=True)
class Evaluation:
    """The latest results for a task on a data set."""

    dataset: str  # empty if the results do not have it
    task: str  # a key of HEADLINES, or another one
    metrics: dict[str, float]  # of the data set, by name
    classes: list[ClassMetrics]
    image_metric: str  # name of the metric of the images
    images: list[ImageMetric]  # none where images have no metric
    has_views: bool  # with test-time augmentation
    boxes: str = ""  # of persons: ground-truth or detected ones

    @property
    def title(self) -> str:
        """The task, for people."""
        title, _ = HEADLINES.get(self.task, (self.task, ()))
        return title + f", {self.boxes}" * bool(self.boxes) + " with views" * self.has_views

    @property
    def noun(self) -> str:
        """What ``classes`` are."""
        return _DETAILS[self.task].noun if self.task in _DETAILS else "classes"

    @property
    def headlines(self) -> list[str]:
        """Names of the main metrics."""
        _, wanted = HEADLINES.get(self.task, ("", ()))
        return [name for name in wanted if name in self.metrics] or list(self.metrics)[:1]


def read_evaluations(run: Path) -> tuple[list[Evaluation], list[str]]:
    """The results in a folder of a run, and a sentence for each of their files that is damaged."""
    found = []
    problems: list[str] = []
    for name, folder in ((RESULTS_FILE, "inference"), (RESULTS_TTA_FILE, "inference_TTA")):
        content = _read(run / name, problems)
        # Results are by data set and task.
        named = {
            key: value
            for key, value in content.items()
            if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values())
        }
        unnamed = {key: value for key, value in content.items() if key not in named}
        by_dataset = [(key.removesuffix("_TTA"), tasks) for key, tasks in named.items()]
        # Those with views of a single data set are without its name, which is that of its folder.
        if any(isinstance(metrics, Mapping) for metrics in unnamed.values()):
            folders = [path.name for path in (run / folder).glob("*/")]
            by_dataset.append((folders[0] if len(folders) == 1 else "", unnamed))
        entries = (
            (dataset, *entry, tasks.get("boxes"))
            for dataset, tasks in by_dataset
            for entry in tasks.items()
        )
        for dataset, task, metrics, boxes in entries:
            if not isinstance(metrics, Mapping) or not metrics:
                continue
            # COCO's AP of classes is among the metrics of the data set.
            whole = {k: _number(v) for k, v in metrics.items() if not k.startswith("AP-")}
            classes = [
                ClassMetrics(key.removeprefix("AP-"), "", {"AP": _number(value)})
                for key, value in metrics.items()
                if key.startswith("AP-")
            ]
            image_metric, images = "", []
            # Files of other tasks are not read; without a data set's name its folder is unknown.
            task = task.removesuffix("_TTA")
            if task in _DETAILS and dataset:
                details = _DETAILS[task]
                image_metric = details.image_metric
                try:
                    files = Path(inside(run / folder, dataset, f"{run / name}: a data set"))
                except DataError as error:
                    problems.append(str(error))
                    continue
                records = _records(files / details.results, details.key, problems)
                classes = [_class_metrics(record) for record in records]
                if details.images:
                    images = [
                        ImageMetric(str(record.get("file_name")), _number(record.get(image_metric)))
                        for record in _records(files / details.images, "images", problems)
                    ]
            has_views = name == RESULTS_TTA_FILE
            # The files may be somebody else's: one of the known texts, or none.
            whose = boxes if task == "keypoints" and boxes in _BOXES else ""
            found.append(
                Evaluation(
                    dataset, task, whole, classes, image_metric, images, has_views, boxes=whose
                )
            )
    return found, problems


def _class_metrics(record: Mapping[str, Any]) -> ClassMetrics:
    isthing = record.get("isthing")
    kind = ("thing" if isthing else "stuff") if isinstance(isthing, bool) else ""
    metrics = {
        # Panoptic files have lower-case keys: pq, sq, rq, tp.
        key.upper() if key.islower() else key: _number(value)
        for key, value in record.items()
        if key not in ("id", "name", "isthing")
    }
    return ClassMetrics(str(record.get("name")), kind, metrics)


def _records(path: Path, key: str, problems: list[str]) -> list[Mapping[str, Any]]:
    records = _read(path, problems).get(key, [])
    if not isinstance(records, list):
        problems.append(f"{path}: {key} is no list")
        return []
    return [record for record in records if isinstance(record, Mapping)]


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    """The content of a file; nothing where there is none."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}
    except (DataError, OSError) as error:
        problems.append(str(error))
        return {}


def _number(value: Any) -> float:
    # null stands for an undefined metric; percentages and counts have few digits.
    return value if type(value) in (int, float) and abs(value) < _MAX_NUMBER else math.nan
