"""Top-down pose estimation: from boxes of persons to their keypoints."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.structures import Instances
from numpy.typing import ArrayLike
from PIL import Image
from torch import nn

from proscale.config import class_dataset
from proscale.data.datasets.coco import SIGMAS
from proscale.data.formats.json_file import read_json_records
from proscale.data.mappers import PoseMapper
from proscale.data.persons import DETECTIONS
from proscale.errors import ConfigError, DataError
from proscale.evaluation import oks_nms
from proscale.predict.result import ClassMetadata, Poses, Prediction, from_poses
from proscale.utils.untrusted import AnyPath

PersonBoxes = ArrayLike
"""Boxes of an image, see :func:`check_boxes`."""

MAX_PERSONS = 1000
"""Boxes of an image, at most."""
# Persons in the model together; of those of one image, or of several images.
_BATCH = 32
# Of a box from the image, in pixels: farther ones are mistakes.
_FARTHEST = 1e6


class PosePredictor:
    """The poses of images, suppressed as in evaluation.

    Args:
        cfg, model: a pose estimator, in evaluation mode.
        classes: with the skeleton; names and colours are those of class 0.
        score_threshold: poses that score less are left out.
    """

    def __init__(
        self, cfg: CfgNode, model: nn.Module, classes: ClassMetadata, score_threshold: float
    ) -> None:
        self._cfg, self._model, self._classes = cfg, model, classes
        self._score_threshold = score_threshold
        self._mapper = PoseMapper(cfg, is_train=False)
        name, number = class_dataset(cfg), cfg.MODEL.POSE_HEAD.NUM_KEYPOINTS
        self._sigmas = MetadataCatalog.get(name).get("keypoint_oks_sigmas", SIGMAS)
        if len(self._sigmas) != number:
            raise ConfigError(
                f"keypoint_oks_sigmas of the data set {name} are {len(self._sigmas)}: expected "
                f"{number}, one for each keypoint"
            )

    @torch.no_grad()
    def __call__(
        self, images: Sequence[np.ndarray], boxes: Sequence[np.ndarray]
    ) -> Iterator[Poses]:
        """The poses of each image.

        Args:
            images: ``(H, W, 3)`` uint8 RGB.
            boxes: of each image, as :func:`check_boxes` returns them.
        """
        samples = []
        for image, of_image in zip(images, boxes, strict=True):
            pixels = convert_PIL_to_numpy(Image.fromarray(image), self._cfg.INPUT.FORMAT)
            samples += [self._mapper.view(pixels, box[:4], box[4]) for box in of_image.tolist()]
        # Crops have one size: persons of all images make batches.
        found: list[Instances] = []
        for start in range(0, len(samples), _BATCH):
            outputs = self._model(samples[start : start + _BATCH])
            found += [output["instances"] for output in outputs]
        start = 0
        for image, of_image in zip(images, boxes, strict=True):
            end = start + len(of_image)
            yield self._poses(image, samples[start:end], found[start:end])
            start = end

    def _poses(
        self, image: np.ndarray, samples: Sequence[dict], found: Sequence[Instances]
    ) -> Poses:
        size = (image.shape[0], image.shape[1])
        # Nobody in the image is a result like others.
        if not found:
            assert self._classes.skeleton is not None  # that of a pose estimator
            return Poses("keypoints", *size, (), len(self._classes.skeleton.names))
        persons = Instances.cat(list(found))
        # The area of a pose is that of its crop.
        kept = oks_nms(
            persons.pred_keypoints,
            persons.scores,
            [np.prod(sample["crop"].scale) for sample in samples],
            self._sigmas,
            self._cfg.MODEL.POSE.OKS_NMS_THRESH,
        )
        return from_poses(persons[torch.from_numpy(kept)], self._classes, self._score_threshold)


def boxes_of(prediction: Prediction, names: Collection[str]) -> np.ndarray:
    """Boxes and scores ``(N, 5)`` of the objects of these classes, at most :data:`MAX_PERSONS`."""
    boxes = [(*one.box, one.score) for one in prediction.objects if one.name in names]
    return np.array(boxes[:MAX_PERSONS], np.float64).reshape(-1, 5)


def check_boxes(boxes: PersonBoxes) -> np.ndarray:
    """Boxes of persons with scores, ``(N, 5)`` float64; scores are 1 where there are none.

    Args:
        boxes: ``(N, 4)`` or ``(N, 5)``: x0, y0, x1, y1 in pixels, and a score from 0 to 1. They may
            reach out of the image.

    Raises:
        ValueError: they have another shape, are no numbers or far outside, have no width or height,
            or are more than :data:`MAX_PERSONS`.
    """
    found = np.asarray(boxes, np.float64)
    if found.size == 0:
        return np.zeros((0, 5))
    if found.ndim != 2 or found.shape[1] not in (4, 5) or len(found) > MAX_PERSONS:
        raise ValueError(
            f"boxes have the shape {found.shape}: expected (N, 4) or (N, 5), N at most "
            f"{MAX_PERSONS}"
        )
    if found.shape[1] == 4:
        found = np.column_stack((found, np.ones(len(found))))
    # nan compares with nothing: it is outside as well.
    is_near = (np.abs(found[:, :4]) < _FARTHEST).all(1)
    is_box = is_near & (found[:, 2:4] > found[:, :2]).all(1)
    is_box &= (found[:, 4] >= 0) & (found[:, 4] <= 1)
    if not is_box.all():
        wrong = found[~is_box][0].tolist()
        raise ValueError(
            f"a box is {wrong}: expected x0 < x1, y0 < y1, within {_FARTHEST:.0f} pixels, and a "
            "score from 0 to 1"
        )
    return found


def read_boxes(path: AnyPath, category_ids: Collection[int]) -> dict[int | str, np.ndarray]:
    """Boxes of persons from a detector's file, by image id, each ``(N, 5)`` as
    :func:`check_boxes` returns them.

    Args:
        path: JSON list of objects with ``image_id``, ``category_id``, ``bbox`` [x, y, width,
            height] and ``score``, as COCO's files of results.
        category_ids: those of persons; others are left out.

    Raises:
        DataError: the file is not of the format, or its boxes cannot be used.
    """
    by_image: dict[int | str, list[list[float]]] = {}
    for found in read_json_records(path, DETECTIONS):
        if found["category_id"] in category_ids:
            x, y, width, height = found["bbox"]
            box = [x, y, x + width, y + height, found["score"]]
            by_image.setdefault(found["image_id"], []).append(box)
    boxes = {}
    for image_id, of_image in by_image.items():
        try:
            boxes[image_id] = check_boxes(of_image)
        except ValueError as error:
            raise DataError(f"{path}: image_id {image_id}: {error}") from error
    return boxes
