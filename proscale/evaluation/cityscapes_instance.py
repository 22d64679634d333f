"""The Cityscapes benchmark's instance AP (Cordts et al., The Cityscapes Dataset for Semantic Urban
Scene Understanding, CVPR 2016, §4.2).

It differs from COCO's: there is no best match to be contested, regions without instances excuse
what lies on them, and the area under the curve is taken otherwise.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm

from proscale.data.datasets.cityscapes import INSTANCES_PER_CLASS
from proscale.evaluation.cityscapes_truth import (
    CLASSES,
    LABEL_IDS,
    THINGS,
    CityscapesTruth,
    check_classes,
)
from proscale.evaluation.figures import check_every_image_once, nan_mean, table
from proscale.evaluation.results_file import write_results

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
"""IoU that a match exceeds."""
MIN_PIXELS = 100
"""Smaller instances need not be found."""

RESULTS_FILE = "cityscapes_instances.json"

logger = logging.getLogger(__name__)

_LABEL_ID = dict(zip(CLASSES, LABEL_IDS.tolist(), strict=True))
_RECORD = np.dtype(
    [("score", float), ("right", bool, len(THRESHOLDS)), ("wrong", bool, len(THRESHOLDS))]
)


class CityscapesInstanceEvaluator(DatasetEvaluator):
    """AP and AP50 over the 8 thing classes, equal to `cityscapesscripts`'.

    Images are matched as they come; of a prediction its score and some bits are kept.

    Args:
        dataset_name: a registered data set whose metadata has `gt_dir`, the folder of the split's
            instance maps, and `thing_classes`, Cityscapes' names in the order of the classes that a
            model predicts (all 19 in panoptic data sets).
        output_dir: where to write `cityscapes_instances.json`; None writes nothing.

    Raises:
        ValueError: a class is unknown.
        FileNotFoundError: there is no truth in `gt_dir`.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        check_classes(metadata.thing_classes, CLASSES, dataset_name)
        self._class_names = list(metadata.thing_classes)
        self._files = CityscapesTruth(metadata.gt_dir)
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self.reset()

    def reset(self) -> None:
        self._matches = {name: _ClassMatches() for name in THINGS}
        self._scored: list[str] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Match a batch.

        Args:
            inputs: dicts with `file_name`.
            outputs: dicts with `instances`: Detectron2's `Instances` with `pred_masks` (N, H, W)
                bool in the size of the truth, `scores` (N,) and `pred_classes` (N,). Those of
                classes that are no things are left out.

        Raises:
            ValueError: there is no truth for an image, or masks have another size.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            frame = self._files.frame(input_["file_name"])
            truth, instances = self._files.instance_ids(frame), output["instances"]
            if tuple(instances.pred_masks.shape[1:]) != truth.shape:
                raise ValueError(
                    f"image {input_['file_name']}: pred_masks are of size "
                    f"{tuple(instances.pred_masks.shape[1:])}, the truth is {truth.shape}"
                )
            self._scored.append(frame)
            self._match(truth, instances)

    def _match(self, truth: np.ndarray, instances: Instances) -> None:
        ids, number = np.unique(truth, return_inverse=True)
        number = number.reshape(truth.shape)
        pixels = np.bincount(number.ravel())
        overlaps = np.array(
            [
                np.bincount(number[mask.cpu().numpy()], minlength=len(ids))
                for mask in instances.pred_masks
            ]
        ).reshape(-1, len(ids))
        names = np.array([self._class_names[i] for i in instances.pred_classes.tolist()], dtype=str)
        scores = instances.scores.double().cpu().numpy()
        label_ids = np.where(ids < INSTANCES_PER_CLASS, ids, ids // INSTANCES_PER_CLASS)
        is_void = ~np.isin(ids, LABEL_IDS) & (ids < INSTANCES_PER_CLASS)
        for name, matches in self._matches.items():
            chosen = (names == name) & (overlaps.sum(axis=1) > 0)
            same = label_ids == _LABEL_ID[name]
            matches.add(
                scores[chosen],
                overlaps[chosen][:, same],
                predicted_pixels=overlaps[chosen].sum(axis=1),
                void_pixels=overlaps[chosen][:, is_void].sum(axis=1),
                true_pixels=pixels[same],
                is_group=ids[same] < INSTANCES_PER_CLASS,
            )

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Merge the ranks' matches; log tables and write the JSON file on rank 0.

        Returns:
            `{"segm": {"AP": ..., "AP50": ..., "AP-person": ..., ...}}` in percent (nan where the
            truth has no instance) on rank 0, None on the others.

        Raises:
            ValueError: images of the data set were never processed, or more than once.
        """
        gathered = comm.gather((self._matches, self._scored))
        if not comm.is_main_process():
            return None
        scored = [frame for _, frames in gathered for frame in frames]
        check_every_image_once(self._files.frames, scored, dataset_name=self._dataset_name)
        precision = np.array(
            [_ClassMatches.merged(m[name] for m, _ in gathered).precision() for name in THINGS]
        )
        per_class = [
            {"name": name, "AP": nan_mean(values), "AP50": float(values[0])}
            for name, values in zip(THINGS, precision, strict=True)
        ]
        summary = {"AP": nan_mean(precision), "AP50": nan_mean(precision[:, 0])}
        logger.info("Cityscapes instances on %s:\n%s", self._dataset_name, table([summary]))
        logger.info("Cityscapes instances per class:\n%s", table(per_class))
        if self._output_dir is not None:
            content = {"dataset": self._dataset_name, "summary": summary, "per_class": per_class}
            write_results(self._output_dir, RESULTS_FILE, content)
        return OrderedDict(segm=summary | {f"AP-{row['name']}": row["AP"] for row in per_class})


class _ClassMatches:
    """Matches of one class, image by image."""

    def __init__(self) -> None:
        self._records: list[np.ndarray] = []
        self._num_true = 0
        self._num_predicted = 0

    @classmethod
    def merged(cls, parts: Iterable["_ClassMatches"]) -> "_ClassMatches":
        """The matches of other images, together."""
        whole = cls()
        for part in parts:
            whole._records += part._records
            whole._num_true += part._num_true
            whole._num_predicted += part._num_predicted
        return whole

    def add(
        self,
        scores: np.ndarray,
        overlaps: np.ndarray,
        *,
        predicted_pixels: np.ndarray,
        void_pixels: np.ndarray,
        true_pixels: np.ndarray,
        is_group: np.ndarray,
    ) -> None:
        """Match the P predictions and G true instances or groups of an image.

        Args:
            scores: (P,).
            overlaps: (P, G) common pixels.
            predicted_pixels: (P,), each more than 0.
            void_pixels: (P,) those of them on regions that are not evaluated.
            true_pixels: (G,).
            is_group: (G,) whether it is several instances that could not be told apart.
        """
        is_small = true_pixels < MIN_PIXELS
        counts = ~is_group & ~is_small
        self._num_true += int(counts.sum())
        self._num_predicted += len(scores)
        iou = overlaps / (predicted_pixels[:, None] + true_pixels - overlaps)
        meets = iou[..., None] > THRESHOLDS
        records = np.empty(len(scores), dtype=_RECORD)
        records["score"] = scores
        # Of several predictions that meet an instance the best-scored one is right.
        first = np.argsort(-scores, kind="stable")
        is_first = np.empty_like(meets)
        is_first[first] = meets[first] & (meets[first].cumsum(axis=0) == 1)
        records["right"] = is_first[:, counts].any(axis=1)
        is_second = (meets & ~is_first)[:, counts].any(axis=1)
        # As in the benchmark, pixels of groups that are small, too, excuse twice.
        excused = void_pixels + overlaps @ (is_group.astype(int) + is_small)
        is_excused = (excused / predicted_pixels)[:, None] > THRESHOLDS
        records["wrong"] = is_second | ~(meets.any(axis=1) | is_excused)
        self._records.append(records)

    def precision(self) -> np.ndarray:
        """(T,) AP in percent; nan without instances to be found."""
        if not self._num_true:
            return np.full(len(THRESHOLDS), np.nan)
        records = np.concatenate(self._records)
        return 100 * np.array(
            [
                _area(
                    records["score"], records["right"][:, t], records["wrong"][:, t], self._num_true
                )
                for t in range(len(THRESHOLDS))
            ]
        )


def _area(scores: np.ndarray, right: np.ndarray, wrong: np.ndarray, num_true: int) -> float:
    """Area under precision over recall, (N,) predictions, right, wrong or neither.

    A point for every distinct score and one at recall 0 and precision 1; each weighs half the
    distance between its neighbours.
    """
    distinct, rank = np.unique(scores[right | wrong], return_inverse=True)
    right = right[right | wrong]
    total = np.bincount(rank, minlength=len(distinct))[::-1].cumsum()
    found = np.bincount(rank[right], minlength=len(distinct))[::-1].cumsum()
    precision = np.concatenate([[1.0], found / total])
    recall = np.concatenate([[0.0, 0.0], found / num_true])
    recall = np.append(recall, recall[-1])
    return float(precision @ (recall[2:] - recall[:-2])) / 2
