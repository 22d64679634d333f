"""A trained model as one call: pictures in, predictions out.

Everything between is what evaluation does: how pictures are read and resized, sliding windows,
views, number formats and thresholds follow from the same keys.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.modeling import build_model
from PIL import Image

from proscale.checkpoint import check_weights, load_weights
from proscale.config import setup_cfg
from proscale.data import build_mapper
from proscale.modeling import with_sliding_window
from proscale.modeling.test_time_augmentation import with_test_time_augmentation
from proscale.predict.classes import Classes
from proscale.predict.image_input import ImageInput, read_rgb
from proscale.predict.result import Prediction, from_instances, from_panoptic, from_semantic

TASKS = ("panoptic", "instance", "semantic")
"""Kinds of predictions. A model that gives several gives the first of these unless told."""


class Predictor:
    """Segments images with a trained model.

    ::

        predictor = proscale.Predictor("config.yaml", "model_final.pth")
        for segment in predictor("street.jpg").segments:
            print(segment.name, segment.score, segment.area, segment.box)

    Args:
        config: a YAML file, or a configuration as ``proscale.engine.setup_cfg`` returns it, which
            is not changed. Names and colours of classes are those of its first ``DATASETS.TEST``.
        weights: checkpoint file; empty takes ``MODEL.WEIGHTS``.
        task: one of ``TASKS`` that the model gives; None takes the first.
        score_threshold: panoptic segments and instances scored below it are left out, in [0, 1].
            (Panoptic ones have passed ``MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD`` already.)

    Attributes:
        cfg: the configuration, for this task only.
        task: the one that was chosen.
        classes: their names, numbers and colours.

    Raises:
        ConfigError: the configuration is wrong or there are no weights.
        CheckpointError: the weights do not fit the model.
        ValueError: the model does not give ``task``, its classes are not those of the data set, or
            a key or ``score_threshold`` has a value that is not accepted.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | CfgNode,
        weights: str | os.PathLike[str] = "",
        *,
        task: str | None = None,
        score_threshold: float = 0.0,
    ) -> None:
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"the score threshold is {score_threshold}: expected 0 to 1")
        cfg = config.clone() if isinstance(config, CfgNode) else setup_cfg(os.fspath(config))
        cfg.defrost()
        cfg.MODEL.WEIGHTS = os.fspath(weights) or cfg.MODEL.WEIGHTS
        check_weights(cfg, resume=False, required=True)
        self.task = choose_task(cfg, task)
        self.score_threshold = score_threshold
        self.classes = _classes(cfg, self.task)
        _leave_out_other_results(cfg, self.task)
        if cfg.TEST.AUG.ENABLED:
            cfg.INPUT.MIN_SIZE_TEST = 0  # the views are made from the image as it is
        cfg.freeze()
        self.cfg = cfg

        self._mapper = build_mapper(cfg, is_train=False)
        model = build_model(cfg).eval()
        load_weights(model, cfg)
        self._model = with_sliding_window(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            self._model = with_test_time_augmentation(cfg, self._model)

    @overload
    def __call__(self, images: ImageInput) -> Prediction: ...

    @overload
    def __call__(self, images: Sequence[ImageInput]) -> list[Prediction]: ...

    @torch.no_grad()
    def __call__(self, images: ImageInput | Sequence[ImageInput]) -> Prediction | list[Prediction]:
        """The prediction for an image, or a list of them for a list or tuple.

        Images of the same size are in the model together. A prediction does not depend on what else
        is in the list.

        Args:
            images: a path, colours ``(H, W, 3)`` uint8 in the order **RGB** (whatever
                ``INPUT.FORMAT`` the model was trained with), a Pillow image, or a sequence.

        Raises:
            FileNotFoundError, ValueError, TypeError: an image cannot be read, see ``read_rgb``.
        """
        if not isinstance(images, (list, tuple)):
            return self([images])[0]
        samples = [self._sample(read_rgb(image)) for image in images]
        groups = defaultdict(list)
        for index, sample in enumerate(samples):
            groups[sample["image"].shape].append(index)
        predictions: dict[int, Prediction] = {}
        for indices in groups.values():
            outputs = self._model([samples[index] for index in indices])
            predictions.update(zip(indices, map(self._prediction, outputs), strict=True))
        return [predictions[index] for index in range(len(samples))]

    def _sample(self, rgb: np.ndarray) -> dict:
        """As the evaluation mapper makes it of a file."""
        image = utils.convert_PIL_to_numpy(Image.fromarray(rgb), self.cfg.INPUT.FORMAT)
        height, width = rgb.shape[:2]
        return {"image": self._mapper.resized(image), "height": height, "width": width}

    def _prediction(self, output: dict) -> Prediction:
        if self.task == "panoptic":
            return from_panoptic(output["panoptic_seg"], self.classes, self.score_threshold)
        if self.task == "instance":
            return from_instances(output["instances"], self.classes, self.score_threshold)
        return from_semantic(output["sem_seg"], self.classes)


def choose_task(cfg: CfgNode, task: str | None) -> str:
    """``task`` if the model gives it; the first of ``TASKS`` that it gives for None.

    Raises:
        ValueError: the model does not give it, or no prediction at all.
    """
    architecture, test = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_FORMER.TEST
    if architecture == "MaskFormer":
        switches = (test.PANOPTIC_ON, test.INSTANCE_ON, test.SEMANTIC_ON)
        given = [name for name, is_on in zip(TASKS, switches, strict=True) if is_on]
    elif architecture == "SemanticSegmentor":
        given = ["semantic"]
    else:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {architecture}: expected MaskFormer, SemanticSegmentor"
        )
    if not given:
        raise ValueError(
            "the model gives no results: set one of PANOPTIC_ON, INSTANCE_ON and SEMANTIC_ON in "
            "MODEL.MASK_FORMER.TEST"
        )
    if task is not None and task not in given:
        raise ValueError(
            f"the task is {task}: expected {', '.join(given)} with this configuration"
            + (
                f" (MODEL.MASK_FORMER.TEST.{task.upper()}_ON is False)"
                if architecture == "MaskFormer" and task in TASKS
                else ""
            )
        )
    return task or given[0]


def _classes(cfg: CfgNode, task: str) -> Classes:
    if not cfg.DATASETS.TEST:
        raise ValueError(
            "DATASETS.TEST is empty: names and colours of the classes come from its first data set"
        )
    name, number = cfg.DATASETS.TEST[0], cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    classes = Classes.of_dataset(name, task)
    if len(classes) != number:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {number}, but DATASETS.TEST has {name} with "
            f"{len(classes)} classes for {task} results: expected data sets with as many classes"
        )
    return classes


def _leave_out_other_results(cfg: CfgNode, task: str) -> None:
    """Switch off what is not asked for, as far as the task's results stay what they are."""
    test = cfg.MODEL.MASK_FORMER.TEST
    if task == "semantic":
        # Which masks are resized first follows from the other results.
        test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE |= test.PANOPTIC_ON or test.INSTANCE_ON
        test.PANOPTIC_ON = test.INSTANCE_ON = False
        test.SEMANTIC_LABELS_ONLY = not cfg.TEST.SLIDING_WINDOW.ENABLED
        return
    test.SEMANTIC_ON = False
    if task == "panoptic":  # instances of panoptic models are things only: both stay on for those
        test.INSTANCE_ON = False
        test.PANOPTIC_SCORES = True
