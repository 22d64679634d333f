"""Semantic segmentation metrics over a data set, as a Detectron2 evaluator.

Unlike Detectron2's `SemSegEvaluator` it also takes its truth from panoptic annotations, and keeps
a confusion matrix instead of the predictions.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image
from tabulate import tabulate

from proscale.data.panoptic_png import read_panoptic_png
from proscale.evaluation.results_file import write_results

RESULTS_FILE = "sem_seg.json"
IGNORE = -1

logger = logging.getLogger(__name__)


class SemanticEvaluator(DatasetEvaluator):
    """mIoU, fwIoU, mACC and pACC, in percent.

    Over the classes that occur in the truth, mIoU is the mean of TP / (TP + FP + FN) and mACC the
    mean of TP / (TP + FN); fwIoU is the mean IoU weighted by the classes' true pixels; pACC is the
    share of pixels that are right. A class that is only predicted has no part in the means (its
    pixels are errors of the classes it covers). Unlabelled pixels count nowhere.

    Args:
        dataset_name: a registered data set. Its metadata has `stuff_classes`, the names of all C
            classes; its entries have either `sem_seg_file_name`, an image of class ids in which
            the metadata's `ignore_label` means unlabelled, or `pan_seg_file_name` and
            `segments_info` with contiguous category ids, in which void and crowd segments are
            unlabelled.
        output_dir: where to write `sem_seg.json` with the metrics and every class's IoU and
            accuracy; None writes nothing.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._class_names = list(metadata.stuff_classes)
        self._ignore_label = metadata.ignore_label
        # Detectron2's mapper takes the truth out of what the model gets.
        self._entries = {entry["file_name"]: entry for entry in DatasetCatalog.get(dataset_name)}
        self.reset()

    def reset(self) -> None:
        num_classes = len(self._class_names)
        # [true class, predicted class] pixels
        self._confusion = np.zeros((num_classes, num_classes), dtype=np.int64)

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Count a batch.

        Args:
            inputs: dicts with `file_name`.
            outputs: dicts with `sem_seg`, in the size of the truth: the classes' scores, a tensor
                (C, H, W), or the best class of every pixel, an integer tensor (H, W).

        Raises:
            ValueError: a prediction has another number of classes or another size than the truth;
                the truth has a class id out of range; the data set gives no truth for the image.
        """
        num_classes = len(self._class_names)
        for input_, output in zip(inputs, outputs, strict=True):
            name, predicted = input_["file_name"], output["sem_seg"]
            truth = self._truth(name)
            if tuple(predicted.shape) not in (truth.shape, (num_classes, *truth.shape)):
                raise ValueError(
                    f"image {name}: sem_seg has shape {tuple(predicted.shape)}, expected "
                    f"(C, H, W) = {(num_classes, *truth.shape)} or (H, W) = {truth.shape}"
                )
            if predicted.ndim == 3:
                predicted = predicted.argmax(dim=0)
            predicted = predicted.cpu().numpy()
            labelled = truth != IGNORE
            self._confusion += np.bincount(
                truth[labelled] * num_classes + predicted[labelled], minlength=num_classes**2
            ).reshape(num_classes, num_classes)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Add up the ranks' counts; log a table and write the JSON file on rank 0.

        Returns:
            `{"sem_seg": {"mIoU": ..., "fwIoU": ..., "mACC": ..., "pACC": ...}}` in percent (nan
            if no pixel was labelled) on rank 0, None on the others.
        """
        gathered = comm.gather(self._confusion)
        if not comm.is_main_process():
            return None
        summary, per_class = _metrics(np.sum(gathered, axis=0))
        logger.info(
            "Semantic segmentation on %s:\n%s",
            self._dataset_name,
            tabulate([summary], headers="keys", tablefmt="pipe", floatfmt=".2f"),
        )
        if self._output_dir is not None:
            write_results(
                self._output_dir,
                RESULTS_FILE,
                {
                    "dataset": self._dataset_name,
                    "summary": summary,
                    "per_class": [
                        {"name": name, "IoU": iou, "ACC": accuracy}
                        for name, (iou, accuracy) in zip(self._class_names, per_class, strict=True)
                    ],
                },
            )
        return OrderedDict(sem_seg=summary)

    def _truth(self, file_name: str) -> np.ndarray:
        """(H, W) int64 class ids, `IGNORE` where unlabelled."""
        entry = self._entries.get(file_name)
        if entry is None:
            raise ValueError(
                f"image {file_name}: data set {self._dataset_name!r} has no such entry"
            )
        if "sem_seg_file_name" in entry:
            return self._truth_from_labels(entry["sem_seg_file_name"])
        if "pan_seg_file_name" in entry:
            return self._truth_from_panoptic(entry)
        raise ValueError(
            f"image {file_name}: its entry in data set {self._dataset_name!r} has neither "
            "sem_seg_file_name nor pan_seg_file_name"
        )

    def _truth_from_labels(self, path: str) -> np.ndarray:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            labels = np.array(image, dtype=np.int64)
        labels[labels == self._ignore_label] = IGNORE
        if labels.max(initial=IGNORE) >= len(self._class_names):
            raise ValueError(
                f"{path}: it has class id {labels.max()}; accepted are 0 to "
                f"{len(self._class_names) - 1} and {self._ignore_label} (unlabelled)"
            )
        return labels

    def _truth_from_panoptic(self, entry: Mapping[str, Any]) -> np.ndarray:
        path = PathManager.get_local_path(entry["pan_seg_file_name"])
        ids, index = np.unique(read_panoptic_png(path), return_inverse=True)
        class_of = {
            s["id"]: IGNORE if s.get("iscrowd", 0) else s["category_id"]
            for s in entry["segments_info"]
        }
        class_of[0] = IGNORE
        unlisted = [i for i in ids.tolist() if i not in class_of]
        if unlisted:
            raise ValueError(f"{path}: segments {unlisted} are missing in its segments_info")
        classes = np.array([class_of[i] for i in ids.tolist()], dtype=np.int64)
        return classes[index]


def _metrics(confusion: np.ndarray) -> tuple[dict[str, float], list[list[float]]]:
    """Metrics of a (C, C) confusion matrix [truth, prediction], and (IoU, accuracy) per class."""
    right = np.diag(confusion).astype(np.float64)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    occurs = true > 0
    with np.errstate(invalid="ignore"):
        iou = 100 * right / (true + predicted - right)
        accuracy = 100 * right / true
    iou[~occurs] = np.nan
    if occurs.any():
        summary = {
            "mIoU": float(iou[occurs].mean()),
            "fwIoU": float((iou * true)[occurs].sum() / true.sum()),
            "mACC": float(accuracy[occurs].mean()),
            "pACC": float(100 * right.sum() / true.sum()),
        }
    else:
        summary = dict.fromkeys(("mIoU", "fwIoU", "mACC", "pACC"), float("nan"))
    return summary, np.stack([iou, accuracy], axis=1).tolist()
