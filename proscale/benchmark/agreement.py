"""Quality of a model's variants on a data set, and how far they agree with the first of them.

Each is made of the variants' names, and takes the outputs of every batch in their order.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator

from proscale.evaluation import build_evaluator
from proscale.evaluation.semantic_evaluator import SemanticEvaluator

# A keypoint is where it was if it moved by less than this part of the longer side of the box.
NEAR = 0.05


class SemanticAgreement:
    """Of semantic models: the pixels that get the same class."""

    header = "as unmerged"
    metrics = ("mIoU",)

    def __init__(self, dataset_name: str, names: Iterable[str]):
        self._evaluators = {name: SemanticEvaluator(dataset_name) for name in names}
        self._agreeing, self._count = dict.fromkeys(self._evaluators, 0), 0

    def add(self, batch: list[dict], outputs: Mapping[str, list[dict]]) -> None:
        """Take what every variant finds in a batch of one image."""
        labels = {}
        for name, output in outputs.items():
            self._evaluators[name].process(batch, output)
            scores = output[0]["sem_seg"]
            labels[name] = scores.argmax(dim=0) if scores.ndim == 3 else scores
        first = next(iter(labels.values()))
        for name, found in labels.items():
            self._agreeing[name] += int((found == first).sum())
        self._count += first.numel()

    def result(self, name: str) -> tuple[dict[str, float], float]:
        """Metrics and agreement of a variant, percent."""
        metrics = dict(self._evaluators[name].evaluate() or {})["sem_seg"]
        return metrics, 100 * self._agreeing[name] / self._count


class PoseAgreement:
    """Of pose estimators: the keypoints that stay within :data:`NEAR`."""

    header = f"within {NEAR} of unmerged"
    metrics = ("PCK@0.1", "PCK@0.05")

    def __init__(self, cfg: CfgNode, dataset_name: str, names: Iterable[str]):
        self._evaluators: dict[str, DatasetEvaluator] = {
            name: build_evaluator(cfg, dataset_name) for name in names
        }
        for evaluator in self._evaluators.values():
            evaluator.reset()
        self._agreeing, self._count = dict.fromkeys(self._evaluators, 0), 0

    def add(self, batch: list[dict], outputs: Mapping[str, list[dict]]) -> None:
        """Take what every variant finds in a batch of persons."""
        points = {}
        for name, output in outputs.items():
            self._evaluators[name].process(batch, output)
            # (N, K, 2) of N persons.
            keypoints = [one["instances"].pred_keypoints[0, :, :2].numpy() for one in output]
            points[name] = np.stack(keypoints).astype(np.float64)
        boxes = np.stack([sample["box"].numpy() for sample in batch])
        sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)[:, None]
        first = next(iter(points.values()))
        for name, found in points.items():
            is_near = np.linalg.norm(found - first, axis=-1) < NEAR * sides
            self._agreeing[name] += int(is_near.sum())
        self._count += first.shape[0] * first.shape[1]

    def result(self, name: str) -> tuple[dict[str, float], float]:
        """Metrics and agreement of a variant, percent."""
        metrics = dict(self._evaluators[name].evaluate() or {})["keypoints"]
        return metrics, 100 * self._agreeing[name] / self._count
