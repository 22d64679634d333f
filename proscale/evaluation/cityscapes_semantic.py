"""The Cityscapes benchmark's pixel-level figures.

IoU over classes and groups of classes, and the instance-weighted form of both, which does not let
large instances count for more (Cordts et al., The Cityscapes Dataset for Semantic Urban Scene
Understanding, CVPR 2016, §4.1).
"""

from collections.abc import Mapping

import numpy as np
from detectron2.data import MetadataCatalog

from proscale.data.datasets.cityscapes import INSTANCES_PER_CLASS
from proscale.evaluation.cityscapes_truth import (
    CLASSES,
    GROUPS,
    LABEL_IDS,
    THINGS,
    CityscapesTruth,
    check_classes,
)
from proscale.evaluation.figures import nan_mean
from proscale.evaluation.semantic_evaluator import IGNORE, SemanticEvaluator

MEAN_INSTANCE_SIZE = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
"""Pixels of an average instance, by which the benchmark weights those of one instance."""

_CLASS_OF_LABEL = {label: class_ for class_, label in enumerate(LABEL_IDS.tolist())}
_THING_CLASSES = np.array([CLASSES.index(name) for name in THINGS])
_GROUP_OF_CLASS = np.array(
    [number for number, names in enumerate(GROUPS.values()) for _ in names], dtype=np.int64
)
_THING_GROUPS = np.unique(_GROUP_OF_CLASS[_THING_CLASSES])


class CityscapesSemanticEvaluator(SemanticEvaluator):
    """IoU and instance-weighted IoU (iIoU), over classes and over the 7 groups of classes (`_sup`).

    They equal `cityscapesscripts`' and have the names that Detectron2 gives them. The figures of
    `SemanticEvaluator` are there, too; its mIoU is IoU. In iIoU, defined where all classes are
    things, an instance's pixels are weighted by the mean size of its class over its own size.

    Args:
        dataset_name: a registered data set whose metadata has `gt_dir`, the folder of the split's
            label and instance maps, and the 19 `stuff_classes` in the order of their train ids.
        output_dir, boundary_iou: see `SemanticEvaluator`.

    Raises:
        ValueError: the classes are others.
        FileNotFoundError: there is no truth in `gt_dir`.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, boundary_iou: bool = False
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        check_classes(metadata.stuff_classes, CLASSES, dataset_name)
        self._files = CityscapesTruth(metadata.gt_dir)
        super().__init__(dataset_name, output_dir, boundary_iou=boundary_iou)

    def _no_counts(self) -> dict[str, np.ndarray]:
        # Weighted pixels of instances, [true class, predicted class].
        weighted = np.zeros((len(CLASSES), len(CLASSES)))
        return super()._no_counts() | {"weighted": weighted}

    def _truth(self, file_name: str) -> np.ndarray:
        labels = self._files.label_ids(self._files.frame(file_name))
        classes = np.full(256, IGNORE)
        classes[LABEL_IDS] = np.arange(len(CLASSES))
        return classes[labels]

    def _count(self, file_name: str, predicted: np.ndarray, truth: np.ndarray) -> None:
        super()._count(file_name, predicted, truth)
        instances = self._files.instance_ids(self._files.frame(file_name))
        is_instance = np.isin(instances // INSTANCES_PER_CLASS, LABEL_IDS)
        ids, number = np.unique(instances[is_instance], return_inverse=True)
        shape = (len(ids), len(CLASSES))
        pixels = np.bincount(
            number * len(CLASSES) + predicted[is_instance], minlength=shape[0] * shape[1]
        ).reshape(shape)
        for id_, row in zip(ids.tolist(), pixels, strict=True):
            class_ = _CLASS_OF_LABEL[id_ // INSTANCES_PER_CLASS]
            weight = MEAN_INSTANCE_SIZE[CLASSES[class_]] / row.sum()
            self._counts["weighted"][class_] += weight * row

    def _figures(
        self, counts: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        summary, per_class = super()._figures(counts)
        groups = _THING_GROUPS, _GROUP_OF_CLASS
        per_class["iIoU"] = _weighted_iou(
            counts["confusion"], counts["weighted"], _THING_CLASSES, np.arange(len(CLASSES))
        )
        benchmark = {
            "IoU": summary["mIoU"],
            "iIoU": nan_mean(per_class["iIoU"]),
            "IoU_sup": nan_mean(_group_iou(counts["confusion"])),
            "iIoU_sup": nan_mean(_weighted_iou(counts["confusion"], counts["weighted"], *groups)),
        }
        return benchmark | summary, per_class


def _grouped(matrix: np.ndarray, group_of_class: np.ndarray) -> np.ndarray:
    """Rows and columns of a (C, C) matrix summed by group."""
    members = np.eye(group_of_class.max() + 1)[:, group_of_class]
    return members @ matrix @ members.T


def _group_iou(confusion: np.ndarray) -> np.ndarray:
    grouped = _grouped(confusion, _GROUP_OF_CLASS)
    right = np.diag(grouped)
    with np.errstate(invalid="ignore"):
        return 100 * right / (grouped.sum(axis=0) + grouped.sum(axis=1) - right)


def _weighted_iou(
    confusion: np.ndarray, weighted: np.ndarray, chosen: np.ndarray, group_of_class: np.ndarray
) -> np.ndarray:
    """iIoU of the `chosen` groups, nan for the others; false positives have no weight."""
    confusion, weighted = (_grouped(m, group_of_class) for m in (confusion, weighted))
    false_positive = confusion.sum(axis=0) - np.diag(confusion)
    result = np.full(len(confusion), np.nan)
    with np.errstate(invalid="ignore"):
        iou = 100 * np.diag(weighted) / (weighted.sum(axis=1) + false_positive)
    result[chosen] = iou[chosen]
    return result
