"""Results as the evaluators wrote them: metrics of data sets, classes and images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proscale.data.formats.json_file import read_json
from proscale.engine.trainer import RESULTS_FILE, RESULTS_TTA_FILE
from proscale.errors import DataError
from proscale.evaluation import panoptic_evaluator, semantic_evaluator

HEADLINES = {
    "panoptic_seg": ("Panoptic segmentation", "PQ"),
    "segm": ("Instance masks", "AP"),
    "boundary": ("Instance boundaries", "AP"),
    "bbox": ("Instance boxes", "AP"),
    "sem_seg": ("Semantic segmentation", "mIoU"),
}
"""By task its title and its main metric."""

# By task the file with classes and the key of their list, the file with images and their metric.
_FILES = {
    "panoptic_seg": (
        (panoptic_evaluator.RESULTS_FILE, "per_category"),
        (panoptic_evaluator.IMAGES_FILE, "PQ"),
    ),
    "sem_seg": (
        (semantic_evaluator.RESULTS_FILE, "per_class"),
        (semantic_evaluator.IMAGES_FILE, "mIoU"),
    ),
}
_PER_CLASS = "AP-"


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of a class; nan where it did not occur. ``kind`` is thing, stuff or unknown, ""."""

    name: str
    kind: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class ImageMetric:
    """The metric of an image by itself, in percent; see the evaluators."""

    file_name: str
    value: float


@dataclass(frozen=True)
class Evaluation:
    """The latest results for a task on a data set.

    Attributes:
        dataset: its name; empty if the results do not have it.
        task: a key of ``HEADLINES``, or another one.
        metrics: of the data set, by name.
        classes: in the order of the data set.
        image_metric: name of the metric of ``images``.
        images: in the order of the evaluation; empty where images have no metric.
        has_views: with test-time augmentation.
    """

    dataset: str
    task: str
    metrics: dict[str, float]
    classes: list[ClassMetrics]
    image_metric: str
    images: list[ImageMetric]
    has_views: bool = False

    @property
    def title(self) -> str:
        """The task, for people."""
        return HEADLINES.get(self.task, (self.task, ""))[0] + " with views" * self.has_views

    @property
    def headline(self) -> str:
        """Name of the main metric."""
        wanted = HEADLINES.get(self.task, ("", ""))[1]
        return wanted if wanted in self.metrics else next(iter(self.metrics), "")


def read_evaluations(run: Path) -> tuple[list[Evaluation], list[str]]:
    """The results in a folder of a run, and a sentence for each of their files that is damaged."""
    found = []
    problems: list[str] = []
    for name, folder in ((RESULTS_FILE, "inference"), (RESULTS_TTA_FILE, "inference_TTA")):
        content = _read(run / name, problems)
        # With and without test-time augmentation, every data set, every task.
        for dataset, tasks in _by_dataset(content, run / folder):
            for task, metrics in tasks.items():
                if isinstance(metrics, Mapping) and metrics:
                    files, task = run / folder / dataset, task.removesuffix("_TTA")
                    evaluation = _evaluation(files, dataset, task, metrics, problems)
                    found.append(replace(evaluation, has_views=name == RESULTS_TTA_FILE))
    return found, problems


def _by_dataset(content: Mapping[str, Any], folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The tasks in a file of results by data set."""
    named = {key: value for key, value in content.items() if _is_nested(value)}
    unnamed = {key: value for key, value in content.items() if key not in named}
    pairs = [(name.removesuffix("_TTA"), tasks) for name, tasks in named.items()]
    # Results with views of a single data set are without its name, which is that of its folder.
    if any(isinstance(tasks, Mapping) for tasks in unnamed.values()):
        folders = [path.name for path in folder.glob("*/")]
        pairs.append((folders[0] if len(folders) == 1 else "", unnamed))
    return pairs


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values())


def _evaluation(
    folder: Path, dataset: str, task: str, metrics: Mapping[str, Any], problems: list[str]
) -> Evaluation:
    # COCO's AP of classes is among the metrics of the data set.
    whole = {k: _number(v) for k, v in metrics.items() if not k.startswith(_PER_CLASS)}
    classes = [
        ClassMetrics(key.removeprefix(_PER_CLASS), "", {"AP": _number(value)})
        for key, value in metrics.items()
        if key.startswith(_PER_CLASS)
    ]
    image_metric, images = "", []
    # Files of other tasks are not read; without a data set's name its folder is unknown.
    if task in _FILES and dataset:
        (class_file, key), (image_file, image_metric) = _FILES[task]
        records = _records(folder / class_file, key, problems)
        classes = [_class_metrics(record) for record in records]
        images = [
            ImageMetric(str(record.get("file_name")), _number(record.get(image_metric)))
            for record in _records(folder / image_file, "images", problems)
        ]
    return Evaluation(dataset, task, whole, classes, image_metric, images)


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
    # null stands for an undefined metric.
    return value if type(value) in (int, float) else math.nan
