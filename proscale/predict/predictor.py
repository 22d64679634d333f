"""A trained model as one call: images in, predictions out.

Everything between is as in evaluation: reading and resizing of images, sliding windows, views,
number formats and thresholds follow from the same keys.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.modeling import build_model
from PIL import Image

from proscale.checkpoint import check_weights, load_weights
from proscale.config import as_overrides, class_dataset, setup_cfg
from proscale.cost.model_cost import resize_for_test
from proscale.data.formats.image_file import read_image, to_array
from proscale.data.mappers import EvaluationMapper
from proscale.errors import ConfigError, shown
from proscale.modeling import with_sliding_window
from proscale.modeling.test_time_augmentation import with_test_time_augmentation
from proscale.ops.fused import fuse_for_inference
from proscale.predict.budget import ChosenBudget, choose_budget
from proscale.predict.persons import PersonBoxes, PosePredictor, boxes_of, check_boxes
from proscale.predict.result import (
    ClassMetadata,
    Prediction,
    from_boxes,
    from_instances,
    from_panoptic,
    from_semantic,
)

_MASK_TASKS = ("panoptic", "instance", "semantic")  # of a MaskFormer
TASKS = (*_MASK_TASKS, "detection", "keypoints")
"""Kinds of predictions. A model that gives several is used for the first of these by default."""

# Tasks of models that have no others.
_TASK_OF = {
    "SemanticSegmentor": "semantic",
    "Detector": "detection",
    "PoseEstimator": "keypoints",
}

ImageInput = str | os.PathLike[str] | np.ndarray | Image.Image
"""A file, RGB colours ``(H, W, 3)`` uint8, or a Pillow image of any mode."""

_Input = TypeVar("_Input", bound=ImageInput)


class Predictor:
    """Predicts segments, boxes or poses in images with a trained model.

    ::

        predictor = proscale.Predictor("model_final.pth")
        for segment in predictor("street.jpg").segments:
            print(segment.name, segment.score, segment.area, segment.box)

    A pose estimator looks for the keypoints of one person in each box. Boxes are given, or another
    predictor finds the persons::

        persons = proscale.Predictor("detector.yaml", "detector.pth", score_threshold=0.5)
        predictor = proscale.Predictor("pose.yaml", "pose.pth", persons=persons)
        for person in predictor("street.jpg").objects:
            print(person.score, person.box, person.keypoints)

    Args:
        config: a checkpoint that describes its model, a name of ``proscale models``, a YAML file
            or its name; or a configuration as ``proscale.config.setup_cfg`` returns it, which is
            not changed. Names and colours of classes are the checkpoint's, or those of the first
            ``DATASETS.TEST``.
        weights: checkpoint file; None or an empty text takes ``MODEL.WEIGHTS``, or the model's.
        task: one of ``TASKS`` that the model gives; None takes the first.
        score_threshold: panoptic segments, instances, boxes and poses scored below it are left out,
            in [0, 1]. (Panoptic ones have passed ``MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD``
            already.)
        persons: for a pose estimator, what finds the persons: their segments, instances or boxes.

    Attributes:
        cfg: the configuration, for this task only.
        task: the one that was chosen.
        classes: their names, numbers and colours.

    Raises:
        ConfigError: the configuration is wrong, there are no weights, the model does not give
            ``task``, or its classes or keypoints are not those of the data set; or ``persons`` does
            not know the pose estimator's class.
        CheckpointError: the weights do not fit the model.
        ValueError: ``score_threshold`` is out of range.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | CfgNode,
        weights: str | os.PathLike[str] | None = None,
        *,
        task: str | None = None,
        score_threshold: float = 0.0,
        persons: "Predictor | None" = None,
    ) -> None:
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold is {score_threshold}: expected 0 to 1")
        cfg = config.clone() if isinstance(config, CfgNode) else setup_cfg(os.fspath(config))
        cfg.defrost()
        # Mistakes are found before the model is built.
        cfg.MODEL.WEIGHTS = os.fspath(weights or cfg.MODEL.WEIGHTS)
        check_weights(cfg, resume=False, required=True)
        self.task = choose_task(cfg, task)
        self.score_threshold = score_threshold
        self.classes = ClassMetadata.of_dataset(class_dataset(cfg), self.task)
        _check_number(cfg, self.task, self.classes)
        self.persons = persons
        if persons is not None:
            _check_persons(self.task, self.classes, persons)
        _leave_out_other_results(cfg, self.task)
        if cfg.TEST.AUG.ENABLED:
            # The views are made from the image as it is.
            cfg.INPUT.MIN_SIZE_TEST = 0
        cfg.freeze()
        self.cfg = cfg

        # The model is put together as for evaluation.
        model = build_model(cfg).eval()
        load_weights(model, cfg)
        # Weights will not change any more: convolutions and norms become one, where they can.
        self._network = fuse_for_inference(model)
        if self.task == "keypoints":
            self._poses = PosePredictor(cfg, self._network, self.classes, score_threshold)
            return
        self._mapper = EvaluationMapper(cfg)
        self._model = with_sliding_window(cfg, self._network)
        if cfg.TEST.AUG.ENABLED:
            self._model = with_test_time_augmentation(cfg, self._model)

    @overload
    def __call__(self, images: ImageInput, boxes: PersonBoxes | None = None) -> Prediction: ...

    @overload
    def __call__(
        self,
        images: list[_Input] | tuple[_Input, ...],
        boxes: Sequence[PersonBoxes] | None = None,
    ) -> list[Prediction]: ...

    @torch.no_grad()
    def __call__(
        self,
        images: ImageInput | list[_Input] | tuple[_Input, ...],
        boxes: Any = None,
    ) -> Prediction | list[Prediction]:
        """The prediction for an image, or a list of them for a list or tuple.

        Images of the same size are in the model together; no prediction depends on the others.
        Arrays are in the order **RGB** for any ``INPUT.FORMAT`` of the model.

        Args:
            images: one or several.
            boxes: for a pose estimator, those of the persons in the image, ``(N, 4)`` of (x0, y0,
                x1, y1) in pixels, or ``(N, 5)`` with a score, which is 1 otherwise; for several
                images a list of these. They come before those of ``persons``.

        Raises:
            FileNotFoundError, ValueError, TypeError: an image cannot be read, see ``read_rgb``; or
                ``boxes`` are not of this form.
            ConfigError: a pose estimator has neither ``boxes`` nor ``persons``.
        """
        if not isinstance(images, (list, tuple)):
            return self([images], None if boxes is None else [boxes])[0]
        if boxes is not None and self.task != "keypoints":
            raise ValueError(f"boxes are for pose estimators: the task is {self.task}")
        pixels = list(map(read_rgb, images))
        if self.task == "keypoints":
            predictions = self._predict_poses(pixels, boxes)
        else:
            predictions = self._predict(pixels)
        # What a prediction needs to be drawn.
        return [
            replace(prediction, image=rgb, classes=self.classes)
            for prediction, rgb in zip(predictions, pixels, strict=True)
        ]

    def _predict(self, images: list[np.ndarray]) -> list[Prediction]:
        # Images of one size make a batch without padding, which would change their predictions.
        samples = []
        groups = defaultdict(list)
        for index, rgb in enumerate(images):
            # As the evaluation mapper makes it of a file.
            image = convert_PIL_to_numpy(Image.fromarray(rgb), self.cfg.INPUT.FORMAT)
            resized, (height, width) = self._mapper.resized(image), rgb.shape[:2]
            samples.append({"image": resized, "height": height, "width": width})
            groups[resized.shape].append(index)
        predictions: dict[int, Prediction] = {}
        for indices in groups.values():
            outputs = self._model([samples[index] for index in indices])
            predictions.update(zip(indices, map(self._prediction, outputs), strict=True))
        return [predictions[index] for index in range(len(samples))]

    def choose_budget(
        self, image: ImageInput, *, latency: float | None = None, share: float | None = None
    ) -> ChosenBudget:
        """Have the encoder of an elastic PRO-SCALE compute the most layers within both limits from
        now on; see :mod:`proscale.predict.budget`.

        Args:
            image: such as those to be predicted, which is predicted some times with some budgets.
            latency: seconds that this may take by the median, on this machine.
            share: multiply-adds of the encoder, as a fraction of Mask2Former's.

        Raises:
            ConfigError: the model has no budgets, or none is within the limits.
            FileNotFoundError, ValueError, TypeError: the image cannot be read, see ``read_rgb``.
        """
        rgb = read_rgb(image)
        size = resize_for_test((rgb.shape[0], rgb.shape[1]), self.cfg)
        call = partial(self, rgb)
        return choose_budget(self.cfg, self._network, call, size, latency=latency, share=share)

    def _predict_poses(
        self, images: list[np.ndarray], boxes: Sequence[PersonBoxes] | None
    ) -> list[Prediction]:
        if boxes is not None:
            found = [check_boxes(of_image) for of_image in boxes]
        elif self.persons is not None:
            found = [boxes_of(one, self.classes.names) for one in self.persons(images)]
        else:
            raise ConfigError(
                "boxes of persons are missing: expected boxes, or a predictor that finds persons"
            )
        return list(self._poses(images, found))

    def _prediction(self, output: dict[str, Any]) -> Prediction:
        if self.task == "panoptic":
            return from_panoptic(output["panoptic_seg"], self.classes, self.score_threshold)
        if self.task == "instance":
            return from_instances(output["instances"], self.classes, self.score_threshold)
        if self.task == "detection":
            return from_boxes(output["instances"], self.classes, self.score_threshold)
        return from_semantic(output["sem_seg"], self.classes)


def load(
    model: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    *,
    task: str | None = None,
    score_threshold: float = 0.0,
    persons: Predictor | None = None,
    **keys: Any,
) -> Predictor:
    """A trained model, by its name or file, as a :class:`Predictor`.

    ::

        model = proscale.load("nuclei", MODEL={"DEVICE": "cpu"})
        model("cells.png").save("found.png")

    Args:
        model: a checkpoint that describes itself, a name of ``proscale models``,
            ``hf://OWNER/NAME``, or a YAML file or its name.
        weights, task, score_threshold, persons: see :class:`Predictor`.
        keys: configuration keys, blocks as dictionaries.

    Raises:
        CheckpointError: the model cannot be found, or the weights do not fit.
        ConfigError, ValueError: see :class:`Predictor`.
    """
    cfg = setup_cfg(os.fspath(model), as_overrides(keys))
    return Predictor(cfg, weights, task=task, score_threshold=score_threshold, persons=persons)


def read_rgb(image: ImageInput) -> np.ndarray:
    """RGB colours ``(H, W, 3)`` uint8 of an image, read as evaluation reads it: turned as EXIF data
    say, and converted from other modes; see ``proscale.data.formats.image_file``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no readable image, or an array has another shape or type.
        TypeError: it is none of ``ImageInput``.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"the image is an array of shape {image.shape} and type {image.dtype}: expected "
                "(H, W, 3) uint8 in the order RGB"
            )
        return image
    # Pillow decodes lazily: damage of a file may appear only here.
    if isinstance(image, Image.Image):
        return to_array(image, "RGB", "the image")
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, "RGB")
    raise TypeError(
        f"the image is of type {type(image).__name__}: expected a path, an array (H, W, 3) uint8 "
        "in the order RGB, a Pillow image, or a list of these"
    )


def choose_task(cfg: CfgNode, task: str | None) -> str:
    """``task`` if the model gives it, a ConfigError otherwise; None is the first of ``TASKS`` that
    it gives."""
    architecture, test = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_FORMER.TEST
    if architecture == "MaskFormer":
        given = [name for name in _MASK_TASKS if test[f"{name.upper()}_ON"]]
    elif architecture in _TASK_OF:
        given = [_TASK_OF[architecture]]
    else:
        expected = ", ".join(("MaskFormer", *_TASK_OF))
        raise ConfigError(f"MODEL.META_ARCHITECTURE is {architecture}: expected {expected}")
    if not given:
        raise ConfigError(
            "PANOPTIC_ON, INSTANCE_ON and SEMANTIC_ON in MODEL.MASK_FORMER.TEST are False: "
            "expected True for one of them"
        )
    if task is None:
        return given[0]
    if task not in given:
        is_off = architecture == "MaskFormer" and task in _MASK_TASKS
        reason = f" (MODEL.MASK_FORMER.TEST.{task.upper()}_ON is False)" * is_off
        raise ConfigError(
            f"the task is {task}: expected {', '.join(given)} with this configuration{reason}"
        )
    return task


def _check_number(cfg: CfgNode, task: str, classes: ClassMetadata) -> None:
    """Refuse a model whose classes, or keypoints, are not as many as the data set's."""
    key, number, expected = "SEM_SEG_HEAD.NUM_CLASSES", len(classes), "classes"
    if classes.skeleton is not None:
        key, number, expected = "POSE_HEAD.NUM_KEYPOINTS", len(classes.skeleton.names), "keypoints"
    node, _, name = key.partition(".")
    if cfg.MODEL[node][name] != number:
        raise ConfigError(
            f"MODEL.{key} is {cfg.MODEL[node][name]}: expected {number}, the {expected} for {task} "
            f"results of {class_dataset(cfg)} in DATASETS.TEST"
        )


def _check_persons(task: str, classes: ClassMetadata, persons: Predictor) -> None:
    if task != "keypoints":
        raise ConfigError(f"persons are for pose estimators: the task is {task}")
    if persons.task not in ("panoptic", "instance", "detection"):
        raise ConfigError(
            f"the task of the model that finds persons is {persons.task}: expected panoptic, "
            "instance, detection"
        )
    if not set(classes.names) & set(persons.classes.names):
        raise ConfigError(
            f"the model that finds persons has the classes {shown(list(persons.classes.names))}: "
            f"expected {', '.join(classes.names)}, as the pose estimator's data set"
        )


def _leave_out_other_results(cfg: CfgNode, task: str) -> None:
    """Switch off the results of other tasks, as far as the task's stay the same."""
    test = cfg.MODEL.MASK_FORMER.TEST
    if task == "semantic":
        # Which masks are resized first follows from the other results.
        test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE |= test.PANOPTIC_ON or test.INSTANCE_ON
        test.PANOPTIC_ON = test.INSTANCE_ON = False
        # Windows are averaged as scores; otherwise the best class of a pixel suffices.
        test.SEMANTIC_LABELS_ONLY = not cfg.TEST.SLIDING_WINDOW.ENABLED
        return
    test.SEMANTIC_ON = False
    # Instances of panoptic models are things only: both stay on for those.
    if task == "panoptic":
        test.INSTANCE_ON = False
        # Evaluation does without the scores of panoptic segments.
        test.PANOPTIC_SCORES = True
