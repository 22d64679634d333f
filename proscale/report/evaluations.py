"""Results of evaluations as the evaluators wrote them: figures of data sets, classes and images."""

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
"""By task: what it is called, and the figure that stands for it."""

_CLASS_FILES = {
    "panoptic_seg": (panoptic_evaluator.RESULTS_FILE, "per_category"),
    "sem_seg": (semantic_evaluator.RESULTS_FILE, "per_class"),
}
_IMAGE_FILES = {
    "panoptic_seg": (panoptic_evaluator.IMAGES_FILE, "PQ"),
    "sem_seg": (semantic_evaluator.IMAGES_FILE, "mIoU"),
}
_PER_CLASS = "AP-"


@dataclass(frozen=True)
class ClassFigures:
    """Figures of a class; nan where it did not occur. ``kind`` is thing, stuff or unknown, ""."""

    name: str
    kind: str
    figures: dict[str, float]


@dataclass(frozen=True)
class ImageFigure:
    """The figure of an image by itself, in percent; see the evaluators."""

    file_name: str
    value: float


@dataclass(frozen=True)
class Evaluation:
    """The latest results for a task on a data set.

    Attributes:
        dataset: its name; empty if it is not told.
        task: a key of ``HEADLINES``, or another one.
        figures: of the data set, by name.
        classes: in the order of the data set.
        metric: of ``images``.
        images: in the order of the evaluation; empty where there is no such figure.
        has_views: whether with test-time augmentation.
    """

    dataset: str
    task: str
    figures: dict[str, float]
    classes: list[ClassFigures]
    metric: str
    images: list[ImageFigure]
    has_views: bool = False

    @property
    def title(self) -> str:
        """For people."""
        return HEADLINES.get(self.task, (self.task, ""))[0] + " with views" * self.has_views

    @property
    def headline(self) -> str:
        """Name of the figure that stands for all."""
        wanted = HEADLINES.get(self.task, ("", ""))[1]
        return wanted if wanted in self.figures else next(iter(self.figures), "")


def read_evaluations(run: Path) -> tuple[list[Evaluation], list[str]]:
    """The results in a folder of a run, and what is wrong with their files."""
    found, faults = [], []
    for name, folder in ((RESULTS_FILE, "inference"), (RESULTS_TTA_FILE, "inference_TTA")):
        content = _read(run / name, faults)
        for dataset, tasks in _by_dataset(content, run / folder):
            for task, figures in tasks.items():
                if not isinstance(figures, Mapping) or not figures:
                    continue
                files, task = run / folder / dataset, task.removesuffix("_TTA")
                evaluation = _evaluation(files, dataset, task, figures, faults)
                found.append(replace(evaluation, has_views=name == RESULTS_TTA_FILE))
    return found, faults


def _by_dataset(content: Mapping[str, Any], folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """What is in a file of results by data set. Views of a single one are without its name, which
    its folder in ``folder`` has."""
    named = {key: value for key, value in content.items() if _is_nested(value)}
    plain = {key: value for key, value in content.items() if key not in named}
    pairs = [(name.removesuffix("_TTA"), tasks) for name, tasks in named.items()]
    if any(isinstance(tasks, Mapping) for tasks in plain.values()):
        folders = [path.name for path in folder.glob("*/")]
        pairs.append((folders[0] if len(folders) == 1 else "", plain))
    return pairs


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values())


def _evaluation(
    folder: Path, dataset: str, task: str, figures: Mapping, faults: list[str]
) -> Evaluation:
    whole = {k: _number(v) for k, v in figures.items() if not k.startswith(_PER_CLASS)}
    classes = [
        ClassFigures(key.removeprefix(_PER_CLASS), "", {"AP": _number(value)})
        for key, value in figures.items()
        if key.startswith(_PER_CLASS)
    ]
    if task in _CLASS_FILES and dataset:
        name, key = _CLASS_FILES[task]
        records = _records(folder / name, key, faults)
        classes = [_class_figures(record) for record in records]
    metric, images = "", []
    if task in _IMAGE_FILES and dataset:
        name, metric = _IMAGE_FILES[task]
        images = [
            ImageFigure(str(record.get("file_name")), _number(record.get(metric)))
            for record in _records(folder / name, "images", faults)
        ]
    return Evaluation(dataset, task, whole, classes, metric, images)


def _class_figures(record: Mapping[str, Any]) -> ClassFigures:
    isthing = record.get("isthing")
    kind = ("thing" if isthing else "stuff") if isinstance(isthing, bool) else ""
    figures = {
        key.upper() if key.islower() else key: _number(value)
        for key, value in record.items()
        if key not in ("id", "name", "isthing")
    }
    return ClassFigures(str(record.get("name")), kind, figures)


def _records(path: Path, key: str, faults: list[str]) -> list[Mapping[str, Any]]:
    records = _read(path, faults).get(key, [])
    if not isinstance(records, list):
        faults.append(f"{path}: {key} is no list")
        return []
    return [record for record in records if isinstance(record, Mapping)]


def _read(path: Path, faults: list[str]) -> dict[str, Any]:
    """The content of a file; nothing where there is none."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}
    except (DataError, OSError) as error:
        faults.append(str(error))
        return {}


def _number(value: Any) -> float:
    return value if type(value) in (int, float) else math.nan
