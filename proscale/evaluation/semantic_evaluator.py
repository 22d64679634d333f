"""Semantic segmentation metrics over a data set, as a Detectron2 evaluator.

Unlike Detectron2's ``SemSegEvaluator`` it also reads panoptic annotations, and keeps a confusion
matrix instead of the predictions.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from proscale.data.formats.image_file import VOID, read_panoptic_png, relabel
from proscale.data.formats.problems import raise_first
from proscale.data.mappers.annotations import SemanticReader
from proscale.errors import DataError
from proscale.evaluation.boundary import inner_boundary
from proscale.evaluation.results import metrics_table, nan_mean, write_results

RESULTS_FILE = "sem_seg.json"
IMAGES_FILE = "sem_seg_images.json"
IGNORE = -1

logger = logging.getLogger(__name__)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """(C,) TP / (TP + FP + FN) in percent from a (C, C) confusion matrix [true, predicted]."""
    right = np.diag(confusion).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return 100 * right / (confusion.sum(axis=1) + confusion.sum(axis=0) - right)


class SemanticEvaluator(DatasetEvaluator):
    """mIoU, fwIoU, mACC and pACC, in percent.

    mIoU is the mean of TP / (TP + FP + FN) over the classes that occur in the ground truth or in
    the predictions, mACC the mean of TP / (TP + FN) over those in the ground truth; fwIoU is the
    mean IoU weighted by the classes' true pixels; pACC is the fraction of pixels that are right.
    Unlabelled pixels count nowhere.

    Args:
        dataset_name: a registered data set. Its metadata has ``stuff_classes``, the names of all C
            classes; its entries have either ``sem_seg_file_name``, an image of class ids and the
            metadata's ``ignore_label``, or ``pan_seg_file_name`` and ``segments_info`` with
            contiguous category ids, whose void and crowd segments are unlabelled.
        output_dir: where to write ``sem_seg.json`` with the metrics, also by class, and
            ``sem_seg_images.json`` with the mIoU of every image; None writes nothing.
        boundary_iou: also compute mBoundaryIoU, the mean over classes of the IoU of the boundaries
            of their masks (Cheng et al. 2021), summed over the data set like IoU.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, boundary_iou: bool = False
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._boundary_iou = boundary_iou
        self._class_names = list(metadata.stuff_classes)
        self._ignore_label = metadata.ignore_label
        self.reset()

    def reset(self) -> None:
        self._counts = self._no_counts()
        self._images: list[dict[str, Any]] = []

    def _no_counts(self) -> dict[str, np.ndarray]:
        """Zero of the counts that are summed over images and over ranks."""
        num_classes = len(self._class_names)
        # Pixels of [true class, predicted class], and [intersection, union] of class boundaries.
        shapes = {"confusion": (num_classes, num_classes), "boundaries": (2, num_classes)}
        return {name: np.zeros(shape, dtype=np.int64) for name, shape in shapes.items()}

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Count a batch.

        Args:
            inputs: dicts with ``file_name``.
            outputs: dicts with ``sem_seg``, in the size of the ground truth: the classes' scores, a
                tensor (C, H, W), or the best class of every pixel, an integer tensor (H, W).

        Raises:
            DataError: the ground truth is missing, has a class id out of range or another size.
            ValueError: the prediction has a class id out of range.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            name, predicted = input_["file_name"], output["sem_seg"]
            labels = self._ground_truth(name)
            scores_shape = (len(self._class_names), *labels.shape)
            if tuple(predicted.shape) not in (labels.shape, scores_shape):
                raise DataError(
                    f"image {name}: sem_seg has shape {tuple(predicted.shape)}: expected from its "
                    f"ground truth (C, H, W) = {scores_shape} or (H, W) = {labels.shape}"
                )
            if predicted.ndim == 3:
                predicted = predicted.argmax(dim=0)
            self._count(name, predicted.cpu().numpy(), labels)

    def _count(self, file_name: str, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Count an image, from its predicted and true class ids (H, W)."""
        num_classes = len(self._class_names)
        if predicted.min(initial=0) < 0 or predicted.max(initial=0) >= num_classes:
            raise ValueError(
                f"image {file_name}: sem_seg has class ids {predicted.min()} to {predicted.max()}: "
                f"expected 0 to {num_classes - 1}"
            )
        labelled = labels != IGNORE
        # One number for each pair of a true and a predicted class.
        pairs = labels[labelled] * num_classes + predicted[labelled]
        confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, -1)
        self._counts["confusion"] += confusion
        # A class that is neither true nor predicted in the image has no IoU, which the mean skips.
        self._images.append({"file_name": file_name, "mIoU": nan_mean(class_iou(confusion))})
        if self._boundary_iou:
            for class_ in np.union1d(labels[labelled], predicted[labelled]).tolist():
                true = inner_boundary(labels == class_)
                # Predictions on unlabelled pixels must not move the contour.
                found = inner_boundary((predicted == class_) & labelled)
                self._counts["boundaries"][:, class_] += (true & found).sum(), (true | found).sum()

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Add up the ranks' counts; log tables and write the JSON files on rank 0.

        Returns:
            ``{"sem_seg": {"mIoU": ..., ...}}`` in percent (nan if no pixel was labelled) on rank 0,
            None on the others.
        """
        gathered = comm.gather((self._counts, self._images))
        if not comm.is_main_process():
            return None
        total = {name: sum(counts[name] for counts, _ in gathered) for name in self._counts}
        images = [metrics for _, of_rank in gathered for metrics in of_rank]
        summary, per_class = self._metrics(total)
        rows = [
            {"name": name} | {key: float(values[class_]) for key, values in per_class.items()}
            for class_, name in enumerate(self._class_names)
        ]
        dataset = {"dataset": self._dataset_name}
        table = metrics_table([summary])
        logger.info("Semantic segmentation on %s:\n%s", self._dataset_name, table)
        logger.info("Semantic segmentation per class:\n%s", metrics_table(rows))
        content = dataset | {"summary": summary, "per_class": rows}
        write_results(self._output_dir, RESULTS_FILE, content)
        write_results(self._output_dir, IMAGES_FILE, dataset | {"images": images})
        return OrderedDict(sem_seg=summary)

    def _metrics(
        self, counts: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The summary, and (C,) metrics of the classes, in percent; undefined ones are nan."""
        confusion = counts["confusion"]
        right, true = np.diag(confusion).astype(np.float64), confusion.sum(axis=1)
        intersection, union = counts["boundaries"]
        # 0 / 0 of classes that do not occur is nan.
        with np.errstate(invalid="ignore"):
            per_class = {"IoU": class_iou(confusion), "ACC": 100 * right / true}
            summary = {
                "mIoU": nan_mean(per_class["IoU"]),
                "fwIoU": float(np.nansum(per_class["IoU"] * true) / true.sum()),
                "mACC": nan_mean(per_class["ACC"]),
                "pACC": float(100 * right.sum() / true.sum()),
            }
            if self._boundary_iou:
                per_class["BoundaryIoU"] = 100 * intersection / union
                summary["mBoundaryIoU"] = nan_mean(per_class["BoundaryIoU"])
        return summary, per_class

    @cached_property
    def _entries(self) -> dict[str, Mapping[str, Any]]:
        # Detectron2's mapper keeps annotations from the model's inputs, which come here.
        return {entry["file_name"]: entry for entry in DatasetCatalog.get(self._dataset_name)}

    def _ground_truth(self, file_name: str) -> np.ndarray:
        """(H, W) int64 class ids, ``IGNORE`` where unlabelled."""
        entry = self._entries.get(file_name)
        if entry is None:
            raise DataError(f"image {file_name}: data set {self._dataset_name!r} has no such entry")
        if "sem_seg_file_name" in entry:
            reader = SemanticReader(
                num_classes=len(self._class_names), ignore_label=self._ignore_label
            )
            labels = reader.read_labels(entry, None, raise_first)
            assert labels is not None  # else raise_first has raised
            labels = labels.astype(np.int64)
            # The label may lie within the range of the classes or above it.
            return np.where(labels == self._ignore_label, IGNORE, labels)
        if "pan_seg_file_name" in entry:
            path, segments = entry["pan_seg_file_name"], entry["segments_info"]
            ids = read_panoptic_png(path)
            classes = {s["id"]: IGNORE if s.get("iscrowd") else s["category_id"] for s in segments}
            classes[VOID] = IGNORE
            unlisted = np.setdiff1d(ids, list(classes)).tolist()
            if unlisted:
                raise DataError(f"{path}: segments {unlisted} are missing in its segments_info")
            return relabel(ids, classes, np.int64)
        raise DataError(
            f"image {file_name}: its entry in data set {self._dataset_name!r} has neither "
            "sem_seg_file_name nor pan_seg_file_name"
        )
