"""Keypoint AP and PCK of human poses over a data set, as a Detectron2 evaluator.

Unlike Detectron2's ``COCOEvaluator`` it suppresses like poses, takes the area of a pose from its
box, leaves what it is handed as it is, and says whose boxes the poses were found in.
"""

import contextlib
import io
import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from proscale.data.datasets.coco import SIGMAS
from proscale.data.formats.coco_format import (
    KEYPOINT_ANNOTATIONS,
    check_instances,
    check_skeleton,
    in_order,
)
from proscale.data.formats.json_file import BOX, ID, INTEGER, Keys, check_lists, read_json
from proscale.data.person_crop import PersonCrop
from proscale.data.persons import clipped_box
from proscale.errors import DataError
from proscale.evaluation.keypoints import keypoint_pck, oks_nms
from proscale.evaluation.results import (
    metrics_table,
    prediction_dir,
    write_predictions,
    write_results,
)

RESULTS_FILE = "keypoints.json"
PREDICTIONS_FILE = "coco_keypoints_results.json"
TRUE_BOXES, DETECTED_BOXES = "ground-truth boxes", "detected boxes"
"""Whose boxes persons are in: AP is higher with the true ones, and literature's is with others."""

PCK_THRESHOLDS = (0.1, 0.05)
# COCOeval's results in their order, and its mark for one that is not defined.
_AP = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
_UNDEFINED = -1

logger = logging.getLogger(__name__)

_IMAGES: Keys = {"id": ID, "height": INTEGER, "width": INTEGER}
_ANNOTATIONS: Keys = {**KEYPOINT_ANNOTATIONS, "bbox": BOX}


class _Pose(NamedTuple):
    """A predicted pose; coordinates are pixel indices, the box is XYXY."""

    image_id: int | str
    annotation_id: int | str | None
    keypoints: np.ndarray  # (K, 3): x, y, score
    box: np.ndarray
    box_score: float
    score: float


class PoseEvaluator(DatasetEvaluator):
    """COCO's keypoint AP and AR, and PCK with the longer side of the box as reference.

    AP is that of ``pycocotools``, after suppression of poses that are alike (OKS); it needs the
    ``area`` of every annotation, and is left out otherwise. PCK counts the persons whose annotation
    is known, each with its box, clipped to the image.

    Args:
        dataset_name: a registered data set whose metadata has ``json_file``, a COCO keypoint file,
            and optionally ``image_ids``, the images that count. ``keypoint_oks_sigmas``, else
            COCO's 17, are the tolerances of its K keypoints.
        input_size: (W, H) of the model's input, whose aspect ratio the areas for the suppression
            have.
        output_dir: where to write ``keypoints.json`` with the metrics, also by keypoint; None
            writes nothing.
        padding: factor of the boxes' sides in the same areas.
        oks_threshold: of two poses of an image with a higher OKS the better one stays.
        save_predictions: write ``coco_keypoints_results.json`` to ``output_dir``, as COCO's test
            server takes it.

    Raises:
        DataError: the JSON is not of the format, or its keypoints are not as many as tolerances.
        ConfigError, DataError: see ``prediction_dir``.
    """

    def __init__(
        self,
        dataset_name: str,
        input_size: Sequence[int] = (288, 384),
        output_dir: str | None = None,
        *,
        padding: float = 1.25,
        oks_threshold: float = 0.9,
        save_predictions: bool = False,
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._input_size, self._padding = input_size, padding
        self._oks_threshold = oks_threshold
        self._output_dir = output_dir
        self._json = metadata.json_file
        self._sigmas = list(metadata.get("keypoint_oks_sigmas", SIGMAS))
        self._names = metadata.get("keypoint_names", list(map(str, range(len(self._sigmas)))))
        content = read_json(self._json)
        self._is_annotated = "annotations" in content
        self._prediction_dir = prediction_dir(content, self._json, output_dir, save_predictions)
        if self._is_annotated:
            check_instances(content, self._json, images=_IMAGES, annotations=_ANNOTATIONS)
        else:
            check_lists(content, {"images": _IMAGES}, self._json)
        images = {image["id"]: image for image in content["images"]}
        wanted = metadata.get("image_ids", images)
        self._images = {id_: image for id_, image in images.items() if id_ in wanted}
        self._annotations = {
            a["id"]: self._checked(a)
            for a in content.get("annotations", ())
            if a["image_id"] in self._images
        }
        self._category_id = check_skeleton(content, self._json)[0]["id"]
        self.reset()

    def _checked(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """The annotation with what COCOeval needs: keypoints and the number of labelled ones."""
        keypoints = annotation.get("keypoints") or [0] * (3 * len(self._sigmas))
        if len(keypoints) != 3 * len(self._sigmas):
            raise DataError(
                f"{self._json}: annotation {annotation['id']} has {len(keypoints)} numbers as "
                f"keypoints: expected 3 for each of {len(self._sigmas)}"
            )
        labelled = sum(value > 0 for value in keypoints[2::3])
        return {"num_keypoints": labelled, "iscrowd": 0, **annotation, "keypoints": keypoints}

    def reset(self) -> None:
        self._poses: list[_Pose] = []

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Take the poses of a batch of persons.

        Args:
            inputs: dicts with ``image_id`` and, for PCK, ``annotation_id``; None: the box is a
                detector's.
            outputs: dicts with ``instances``, Detectron2's ``Instances``: ``pred_keypoints``
                (N, K, 3), x and y (0.5 more than pixel indices) and score; ``pred_boxes``,
                ``box_scores`` and ``scores``, those of the poses. N is 1 where there is an
                annotation.

        Raises:
            ValueError: an image or an annotation is unknown, or K is not the data set's.
        """
        for input_, output in zip(inputs, outputs, strict=True):
            image_id, annotation_id = input_["image_id"], input_.get("annotation_id")
            if image_id not in self._images:
                raise ValueError(
                    f"image_id {image_id}: expected one of the {len(self._images)} images of data "
                    f"set {self._dataset_name!r}"
                )
            if annotation_id is not None and annotation_id not in self._annotations:
                raise ValueError(
                    f"annotation_id {annotation_id}: expected one of the {len(self._annotations)} "
                    f"annotations of data set {self._dataset_name!r}, or None"
                )
            instances = output["instances"]
            # A copy: the half pixel is taken from what is kept here alone.
            keypoints = instances.pred_keypoints.detach().cpu().double().numpy().copy()
            if keypoints.shape[1] != len(self._sigmas):
                raise ValueError(
                    f"image_id {image_id}: pred_keypoints has {keypoints.shape[1]} keypoints, data "
                    f"set {self._dataset_name!r} {len(self._sigmas)}"
                )
            # From Detectron2's coordinates to pixel indices, those of the annotation file.
            keypoints[..., :2] -= 0.5
            boxes = instances.pred_boxes.tensor.cpu().double().numpy()
            scores = zip(instances.box_scores.tolist(), instances.scores.tolist(), strict=True)
            for pose, box, of_both in zip(keypoints, boxes, scores, strict=True):
                self._poses.append(_Pose(image_id, annotation_id, pose, box, *of_both))

    def evaluate(self) -> OrderedDict[str, Any] | None:
        """Join the ranks' poses; log tables and write the files on rank 0.

        Returns:
            ``{"keypoints": {"AP": ..., "PCK@0.1": ...}, "boxes": ...}`` on rank 0, in percent, NaN
            where nothing is annotated; ``boxes`` is ``TRUE_BOXES`` or ``DETECTED_BOXES``. None on
            the other ranks.
        """
        gathered = comm.gather(self._poses)
        if not comm.is_main_process():
            return None
        # Samplers may repeat persons to make shards of equal length.
        poses = list({_identity(pose): pose for of_rank in gathered for pose in of_rank}.values())
        is_detected = any(pose.annotation_id is None for pose in poses)
        boxes = DETECTED_BOXES if is_detected else TRUE_BOXES
        results = self._results(self._suppressed(poses))
        if self._prediction_dir is not None:
            write_predictions(self._prediction_dir, PREDICTIONS_FILE, map(json.dumps, results))
        if not self._is_annotated:
            return OrderedDict(keypoints={}, boxes=boxes)
        per_keypoint, summary = self._pck(poses)
        summary = self._average_precision(results) | summary
        rows = [
            {"name": name} | {key: float(values[place]) for key, values in per_keypoint.items()}
            for place, name in enumerate(self._names)
        ]
        name, table = self._dataset_name, metrics_table([summary])
        logger.info("Keypoints on %s, %s:\n%s", name, boxes, table)
        # Of a detector's boxes it is not known whose they are.
        if not is_detected:
            logger.info("PCK per keypoint:\n%s", metrics_table(rows))
        content = {"dataset": name, "boxes": boxes, "summary": summary, "per_keypoint": rows}
        write_results(self._output_dir, RESULTS_FILE, content)
        return OrderedDict(keypoints=summary, boxes=boxes)

    def _suppressed(self, poses: Sequence[_Pose]) -> list[_Pose]:
        """Without those that are like a better one of the same image."""
        by_image: dict[int | str, list[_Pose]] = {}
        for pose in poses:
            by_image.setdefault(pose.image_id, []).append(pose)
        kept = []
        for of_image in by_image.values():
            # The area is that of the crop the model has seen.
            areas = [
                np.prod(PersonCrop(pose.box, self._input_size, self._padding).scale)
                for pose in of_image
            ]
            indices = oks_nms(
                np.stack([pose.keypoints for pose in of_image]),
                [pose.score for pose in of_image],
                areas,
                self._sigmas,
                self._oks_threshold,
            )
            kept += [of_image[i] for i in indices]
        return kept

    def _results(self, poses: Sequence[_Pose]) -> list[dict[str, Any]]:
        """As in COCO's files of results; coordinates are pixel indices."""
        return [
            {
                "image_id": pose.image_id,
                "category_id": self._category_id,
                "keypoints": pose.keypoints.ravel().tolist(),
                "score": pose.score,
                # pycocotools takes a pose's area from its box, or else from its keypoints.
                "bbox": [*pose.box[:2].tolist(), *(pose.box[2:] - pose.box[:2]).tolist()],
            }
            for pose in poses
        ]

    def _pck(self, poses: Sequence[_Pose]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """PCK in percent of every keypoint, (K,), and its mean, by its name."""
        known = [pose for pose in poses if pose.annotation_id is not None]
        annotations = [self._annotations[pose.annotation_id] for pose in known]
        shape = (len(known), len(self._sigmas), 3)
        predicted = np.reshape([pose.keypoints for pose in known], shape)
        truth = np.reshape([annotation["keypoints"] for annotation in annotations], shape)
        boxes = [
            clipped_box(annotation["bbox"], image["height"], image["width"])
            for annotation in annotations
            for image in [self._images[annotation["image_id"]]]
        ]
        per_keypoint, means = {}, {}
        for threshold in PCK_THRESHOLDS:
            fractions, mean = keypoint_pck(
                predicted[..., :2],
                truth[..., :2],
                truth[..., 2],
                np.reshape(boxes, (-1, 4)),
                threshold,
            )
            name = f"PCK@{threshold}"
            per_keypoint[name], means[name] = 100 * fractions, 100 * mean
        return per_keypoint, means

    def _average_precision(self, results: Sequence[dict[str, Any]]) -> dict[str, float]:
        """AP and AR in percent; nothing where annotations have no area."""
        without = [id_ for id_, a in self._annotations.items() if "area" not in a]
        if without:
            logger.warning(
                "%s: %d annotations have no area: keypoint AP is not computed",
                *(self._json, len(without)),
            )
            return {}
        found = [
            {**result, "id": number, "iscrowd": 0, "area": result["bbox"][2] * result["bbox"][3]}
            for number, result in enumerate(results, start=1)
        ]
        # pycocotools prints its progress.
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(
                self._as_coco(list(self._annotations.values())), self._as_coco(found), "keypoints"
            )
            evaluation.params.kpt_oks_sigmas = np.array(self._sigmas)
            evaluation.params.imgIds = in_order(self._images)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return {
            name: float("nan") if value == _UNDEFINED else 100 * float(value)
            for name, value in zip(_AP, evaluation.stats, strict=True)
        }

    def _as_coco(self, annotations: list[dict[str, Any]]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": list(self._images.values()),
            # pycocotools marks what it ignores in the annotations.
            "annotations": [dict(annotation) for annotation in annotations],
            "categories": [{"id": self._category_id, "name": "person"}],
        }
        coco.createIndex()
        return coco


def _identity(pose: _Pose) -> tuple[Any, ...]:
    """Equal for the same person of the data set, or the same detection."""
    if pose.annotation_id is not None:
        return (pose.image_id, pose.annotation_id)
    return (pose.image_id, None, *pose.box.tolist(), pose.box_score)
