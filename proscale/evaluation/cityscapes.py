"""The Cityscapes benchmark (Cordts et al., The Cityscapes Dataset for Semantic Urban Scene
Understanding, CVPR 2016, §4): pixel-level IoU and iIoU, instance-level AP.

The metrics equal those of ``cityscapesscripts``, whose version 2.3 cannot evaluate with NumPy 2.4,
keeps all masks on disk and writes into the working folder.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from proscale.data.datasets.cityscapes import IMAGE_SUFFIX, INSTANCES_PER_CLASS, INSTANCES_SUFFIX
from proscale.data.formats.image_file import read_label_image
from proscale.errors import DataError, MissingFileError
from proscale.evaluation.results import (
    check_every_image_once,
    metrics_table,
    nan_mean,
    write_results,
)
from proscale.evaluation.semantic_evaluator import IGNORE, SemanticEvaluator, class_iou

CLASSES = tuple(c["name"] for c in CITYSCAPES_CATEGORIES)
"""The 19 classes that are evaluated, in the order of their train ids."""
LABEL_IDS = np.array([c["id"] for c in CITYSCAPES_CATEGORIES])
THINGS = np.flatnonzero([c["isthing"] for c in CITYSCAPES_CATEGORIES])
"""Train ids of the 8 classes with instances."""
GROUP_SIZES = (2, 3, 3, 2, 1, 2, 6)
"""Successive classes in each of the benchmark's groups: flat, construction, object, nature, sky,
human, vehicle."""
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
"""Pixels of the average instance of a class."""
THRESHOLDS = np.arange(0.5, 1.0, 0.05)
"""IoU that a matching prediction exceeds."""
MIN_PIXELS = 100
"""Smaller instances need not be found."""

LABELS_SUFFIX = "_gtFine_labelIds.png"
RESULTS_FILE = "cityscapes_instances.json"

logger = logging.getLogger(__name__)

# Labels that are not evaluated, such as the own car, are unlabelled.
_CLASS_OF_LABEL = np.full(256, IGNORE)
_CLASS_OF_LABEL[LABEL_IDS] = np.arange(len(CLASSES))
_GROUP_OF_CLASS = np.repeat(np.arange(len(GROUP_SIZES)), GROUP_SIZES)
# Of a prediction: right, wrong or neither at each threshold.
_BITS = [(name, bool, len(THRESHOLDS)) for name in ("right", "wrong")]
_RECORD = np.dtype([("class", np.int8), ("score", np.float64), *_BITS])


class _GroundTruth:
    """Label and instance maps of a split, in a folder for each city.

    Args:
        dataset_name: a registered data set whose metadata has ``gt_dir``, ``gtFine/(split)``.
        class_names: its classes, which have to be Cityscapes'.
    """

    def __init__(self, dataset_name: str, class_names: Sequence[str]) -> None:
        unknown = [name for name in class_names if name not in CLASSES]
        if unknown:
            raise DataError(
                f"data set {dataset_name!r}: {', '.join(unknown)} are no classes of Cityscapes: "
                f"expected {', '.join(CLASSES)}"
            )
        self._root = Path(MetadataCatalog.get(dataset_name).gt_dir)
        paths = sorted(self._root.glob(f"*/*{INSTANCES_SUFFIX}"))
        if not paths:
            raise MissingFileError(f"no instance maps {self._root}/(city)/*{INSTANCES_SUFFIX}")
        # (city)/(frame) of all images.
        self.frames = [f"{p.parent.name}/{p.name.removesuffix(INSTANCES_SUFFIX)}" for p in paths]

    def frame(self, file_name: str) -> str:
        """``(city)/(frame)`` of an image file."""
        path = Path(file_name)
        frame = f"{path.parent.name}/{path.name.removesuffix(IMAGE_SUFFIX)}"
        if frame not in self.frames:
            raise DataError(f"image {file_name}: no ground truth for {frame} in {self._root}")
        return frame

    def read(self, file_name: str, suffix: str) -> np.ndarray:
        """(H, W) int64 ids of an image file: ``LABELS_SUFFIX`` or ``INSTANCES_SUFFIX``."""
        return read_label_image(self._root / (self.frame(file_name) + suffix)).astype(np.int64)


class CityscapesSemanticEvaluator(SemanticEvaluator):
    """IoU and instance-weighted IoU (iIoU, §4.1), over classes and their 7 groups (``_sup``).

    The metrics of ``SemanticEvaluator`` are there, too; its mIoU is IoU. iIoU is of classes and
    groups that are all things; in it an instance's pixels are weighted by the mean size of its
    class over its own size.

    Args:
        dataset_name: a registered data set whose metadata has ``gt_dir``, the folder of the split's
            label and instance maps, and the 19 ``stuff_classes`` in the order of their train ids.
        output_dir, boundary_iou: see ``SemanticEvaluator``.

    Raises:
        DataError: the classes are others, or there is no ground truth in ``gt_dir``.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, boundary_iou: bool = False
    ) -> None:
        class_names = MetadataCatalog.get(dataset_name).stuff_classes
        self._files = _GroundTruth(dataset_name, class_names)
        super().__init__(dataset_name, output_dir, boundary_iou=boundary_iou)

    def _no_counts(self) -> dict[str, np.ndarray]:
        # Weighted pixels of instances, [true class, predicted class].
        weighted = np.zeros((len(CLASSES), len(CLASSES)))
        return super()._no_counts() | {"weighted": weighted}

    def _ground_truth(self, file_name: str) -> np.ndarray:
        return _CLASS_OF_LABEL[self._files.read(file_name, LABELS_SUFFIX)]

    def _count(self, file_name: str, predicted: np.ndarray, labels: np.ndarray) -> None:
        super()._count(file_name, predicted, labels)
        instances = self._files.read(file_name, INSTANCES_SUFFIX)
        # Groups of instances have no size of an instance, and no weight.
        is_instance = np.isin(instances // INSTANCES_PER_CLASS, LABEL_IDS)
        ids, number = np.unique(instances[is_instance], return_inverse=True)
        # Pixels of [instance, predicted class].
        pairs = number * len(CLASSES) + predicted[is_instance]
        pixels = np.bincount(pairs, minlength=len(ids) * len(CLASSES)).reshape(-1, len(CLASSES))
        for id_, row in zip(ids.tolist(), pixels, strict=True):
            class_ = _CLASS_OF_LABEL[id_ // INSTANCES_PER_CLASS]
            # Weighted, every instance counts like an average one of its class.
            weight = MEAN_INSTANCE_SIZE[CLASSES[class_]] / row.sum()
            self._counts["weighted"][class_] += weight * row

    def _metrics(
        self, counts: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        summary, per_class = super()._metrics(counts)
        confusion, weighted = counts["confusion"], counts["weighted"]
        grouped, grouped_weighted = _grouped(confusion), _grouped(weighted)
        per_class["iIoU"] = _weighted_iou(confusion, weighted, THINGS)
        thing_groups = np.unique(_GROUP_OF_CLASS[THINGS])
        benchmark = {
            "IoU": summary["mIoU"],
            "iIoU": nan_mean(per_class["iIoU"]),
            "IoU_sup": nan_mean(class_iou(grouped)),
            "iIoU_sup": nan_mean(_weighted_iou(grouped, grouped_weighted, thing_groups)),
        }
        return benchmark | summary, per_class


def _grouped(matrix: np.ndarray) -> np.ndarray:
    """Rows and columns of a (C, C) matrix summed by group."""
    members = np.eye(len(GROUP_SIZES))[:, _GROUP_OF_CLASS]
    return members @ matrix @ members.T


def _weighted_iou(confusion: np.ndarray, weighted: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """iIoU = iTP / (iTP + FP + iFN) in percent of the ``chosen`` classes, nan for the others."""
    # False positives belong to no instance, so that they have no weight.
    false_positive = confusion.sum(axis=0) - np.diag(confusion)
    with np.errstate(invalid="ignore"):
        iou = 100 * np.diag(weighted) / (weighted.sum(axis=1) + false_positive)
    return np.where(np.isin(np.arange(len(iou)), chosen), iou, np.nan)


class CityscapesInstanceEvaluator(DatasetEvaluator):
    """AP and AP50 over the 8 thing classes (§4.2).

    It differs from COCO's AP: a prediction matches all instances above the threshold, regions
    that are not evaluated excuse predictions on them, and the area under the precision-recall curve
    is taken otherwise. Of a prediction its score and some bits are kept.

    Args:
        dataset_name: a registered data set whose metadata has ``gt_dir``, the folder of the split's
            instance maps, and ``thing_classes``, Cityscapes' names in the order of the classes that
            a model predicts (all 19 in panoptic data sets).
        output_dir: where to write ``cityscapes_instances.json``; None writes nothing.

    Raises:
        DataError: a class is unknown, or there is no ground truth in ``gt_dir``.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        class_names = MetadataCatalog.get(dataset_name).thing_classes
        self._files = _GroundTruth(dataset_name, class_names)
        self._train_ids = np.array([CLASSES.index(name) for name in class_names])
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self.reset()

    def reset(self) -> None:
        self._records: list[np.ndarray] = []
        # Instances to be found, of every class.
        self._positives = np.zeros(len(CLASSES), dtype=np.int64)
        # Frames that were scored, to tell if any is missing.
        self._frames: list[str] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Match a batch.

        Args:
            inputs: dicts with ``file_name``.
            outputs: dicts with ``instances``: Detectron2's ``Instances`` with ``pred_masks``
                (N, H, W) bool in the size of the ground truth, ``scores`` (N,) and ``pred_classes``
                (N,). Predictions of stuff classes are left out.

        Raises:
            ValueError: there is no ground truth for an image, or masks have another size.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            file_name, instances = input_["file_name"], output["instances"]
            instance_ids = self._files.read(file_name, INSTANCES_SUFFIX)
            size = tuple(instances.pred_masks.shape[1:])
            if size != instance_ids.shape:
                raise ValueError(
                    f"image {file_name}: pred_masks are of size {size}, the ground truth is "
                    f"{instance_ids.shape}"
                )
            self._frames.append(self._files.frame(file_name))
            ids, number = np.unique(instance_ids, return_inverse=True)
            number = number.reshape(instance_ids.shape)
            pixels = np.bincount(number.ravel())
            # Common pixels of every prediction and every id.
            masks = [mask.cpu().numpy() for mask in instances.pred_masks]
            overlaps = np.array([np.bincount(number[mask], minlength=len(ids)) for mask in masks])
            overlaps = overlaps.reshape(-1, len(ids))
            predicted_pixels = overlaps.sum(axis=1)
            iou = overlaps / (predicted_pixels[:, None] + pixels - overlaps)
            classes = self._train_ids[instances.pred_classes.cpu().numpy()]
            scores = instances.scores.double().cpu().numpy()
            # Pixels of groups and of void have their label alone.
            is_group, is_small = ids < INSTANCES_PER_CLASS, pixels < MIN_PIXELS
            label_ids = np.where(is_group, ids, ids // INSTANCES_PER_CLASS)
            # Groups and small instances need not be found.
            is_counted = ~is_group & ~is_small
            void_pixels = overlaps[:, is_group & ~np.isin(ids, LABEL_IDS)].sum(axis=1)
            for class_ in THINGS.tolist():
                # The benchmark leaves empty predictions out.
                chosen = (classes == class_) & (predicted_pixels > 0)
                same = label_ids == LABEL_IDS[class_]
                # As in the benchmark, pixels of small groups excuse twice.
                excuses = is_group[same].astype(int) + is_small[same]
                excused_pixels = void_pixels[chosen] + overlaps[chosen][:, same] @ excuses
                records = np.empty(chosen.sum(), dtype=_RECORD)
                records["class"], records["score"] = class_, scores[chosen]
                excused = excused_pixels / predicted_pixels[chosen]
                records["right"], records["wrong"] = _match_class(
                    scores[chosen], iou[chosen][:, same], is_counted[same], excused=excused
                )
                self._records.append(records)
                self._positives[class_] += is_counted[same].sum()

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Merge the ranks' matches; log tables and write the JSON file on rank 0.

        Returns:
            ``{"segm": {"AP": ..., "AP50": ..., "AP-person": ..., ...}}`` in percent (nan without
            any instance to be found) on rank 0, None on the others.

        Raises:
            ValueError: images of the data set were never processed, or more than once.
        """
        gathered = comm.gather((self._records, self._positives, self._frames))
        if not comm.is_main_process():
            return None
        scored = [frame for _, _, frames in gathered for frame in frames]
        check_every_image_once(self._files.frames, scored, self._dataset_name)
        records = np.concatenate([part for parts, _, _ in gathered for part in parts])
        positives = sum(count for _, count, _ in gathered)
        precision = np.array(
            [_average_precision(records[records["class"] == c], int(positives[c])) for c in THINGS]
        )
        per_class = [
            {"name": CLASSES[class_], "AP": nan_mean(values), "AP50": float(values[0])}
            for class_, values in zip(THINGS, precision, strict=True)
        ]
        # Classes without instances are left out of the means.
        summary = {"AP": nan_mean(precision), "AP50": nan_mean(precision[:, 0])}
        logger.info("Cityscapes instances on %s:\n%s", self._dataset_name, metrics_table([summary]))
        logger.info("Cityscapes instances per class:\n%s", metrics_table(per_class))
        content = {"dataset": self._dataset_name, "summary": summary, "per_class": per_class}
        write_results(self._output_dir, RESULTS_FILE, content)
        return OrderedDict(segm=summary | {f"AP-{row['name']}": row["AP"] for row in per_class})


def _match_class(
    scores: np.ndarray, iou: np.ndarray, is_counted: np.ndarray, *, excused: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match the P predictions and G true instances and groups of a class in an image.

    Returns:
        true and false positives, (P, thresholds) bool. Predictions that match only instances which
        are not counted, or nothing and are mostly ``excused`` (a fraction, (P,)), are neither.
    """
    is_match = iou[..., None] > THRESHOLDS
    # Of several predictions that match an instance the best-scored one is right …
    order = np.argsort(-scores, kind="stable")
    is_best = np.zeros(is_match.shape, dtype=bool)
    is_best[order] = is_match[order] & (is_match[order].cumsum(axis=0) == 1)
    right = np.any(is_best[:, is_counted], axis=1)
    # … and the others are wrong, as are those that match nothing and are not excused.
    is_repeated = (is_match & ~is_best)[:, is_counted].any(axis=1)
    is_excused = excused[:, None] > THRESHOLDS
    return right, is_repeated | ~(is_match.any(axis=1) | is_excused)


def _average_precision(records: np.ndarray, positives: int) -> np.ndarray:
    """(thresholds,) areas under precision over recall, in percent; nan if ``positives`` is 0."""
    if not positives:
        return np.full(len(THRESHOLDS), np.nan)
    areas = []
    for right, wrong in zip(records["right"].T, records["wrong"].T, strict=True):
        # A point of the curve for every distinct score …
        judged = right | wrong
        distinct, rank = np.unique(records["score"][judged], return_inverse=True)
        total = np.bincount(rank, minlength=len(distinct))[::-1].cumsum()
        found = np.bincount(rank[right[judged]], minlength=len(distinct))[::-1].cumsum()
        # … and one at recall 0 and precision 1.
        precision = np.concatenate([[1.0], found / total])
        recall = np.concatenate([[0.0, 0.0], found / positives])
        recall = np.append(recall, recall[-1])
        # Each weighs half the distance between its neighbours.
        areas.append(precision @ (recall[2:] - recall[:-2]) / 2)
    return 100 * np.array(areas)
