"""A training step in a file, to be repeated after a fault.

The file holds its inputs: configuration, parameters and buffers, the batch, seed, iteration and
rank. It is read without running any code of a pickle.
"""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from proscale.checkpoint.files import read_checkpoint, save_archive
from proscale.checkpoint.tensors import check_fit
from proscale.config import without_trust
from proscale.engine.train_loop import Sample, TrainLoop
from proscale.errors import CheckpointError, printable, shown

_STRUCTURES = {"BitMasks": BitMasks, "Boxes": Boxes}
_NUMBER = (int, "a whole number from 0")
_KINDS: dict[str, tuple[type, str]] = {
    "config": (str, "the configuration as YAML"),
    **dict.fromkeys(("seed", "iteration", "rank"), _NUMBER),
    "weights": (dict, "tensors by name"),
    "batch": (list, "one or more samples"),
}
_KIND = "__kind__"


@dataclass(frozen=True)
class RecordedStep:
    """The inputs of a training step.

    Attributes:
        config: of the run, as YAML.
        seed, iteration, rank: random numbers of the step follow from them.
        weights: the model's ``state_dict`` from before the step; in one that ended a training, the
            running statistics of batch norms, which a step does not read, are from after it.
        batch: the samples of the rank.
    """

    config: str
    seed: int
    iteration: int
    rank: int
    weights: dict[str, torch.Tensor]
    batch: list[Sample]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "RecordedStep":
        """
        Raises:
            CheckpointError: the file is not there, damaged, or no recorded step.
        """
        content, names = read_checkpoint(Path(path)), [field.name for field in fields(cls)]
        missing = [name for name in names if name not in content]
        if missing:
            raise CheckpointError(f"{path}: it is no recorded step: it has no {', '.join(missing)}")
        for name, (kind, words) in _KINDS.items():
            value = content[name]
            in_range = not isinstance(value, int) or 0 <= value < 2**31
            if type(value) is not kind or not in_range or (name == "batch" and not value):
                raise CheckpointError(f"{path}: {name} is {shown(value)}: expected {words}")
        try:
            return cls(**{name: _restore(content[name]) for name in names})
        # Detectron2's structures assert their shapes.
        except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = printable(str(error).partition("\n")[0] or type(error).__name__)
            raise CheckpointError(f"{path}: batch cannot be restored: {reason}") from error

    def load_weights(self, model: nn.Module, path: str | os.PathLike[str]) -> None:
        """Give ``model`` the weights; ``path`` is for messages.

        Raises:
            CheckpointError: they are not all those of ``model``, and no others.
        """
        expected = model.state_dict()
        wrong = [
            name
            for name in {**expected, **self.weights}
            if name not in expected
            or not isinstance(tensor := self.weights.get(name), torch.Tensor)
            or tensor.shape != expected[name].shape
        ]
        if wrong:
            raise CheckpointError(
                f"{path}: weights differ from those of the model of its configuration, in name or "
                f"shape: {', '.join(map(printable, wrong[:3]))}{', …' * (len(wrong) > 3)}"
            )
        check_fit(path, self.weights, expected)
        model.load_state_dict(self.weights)

    def check_batch(self, cfg: CfgNode, path: str | os.PathLike[str]) -> None:
        """Make sure that a model of ``cfg`` can be trained with the batch in ``path``.

        Raises:
            CheckpointError: it has too few samples, or one is not of the model's kind.
        """
        parts = cfg.SOLVER.ACCUMULATION_STEPS
        if len(self.batch) < parts:
            raise CheckpointError(
                f"{path}: batch has {len(self.batch)} samples: expected {parts} or more "
                "(SOLVER.ACCUMULATION_STEPS)"
            )
        # Models of others have samples of their own.
        if cfg.MODEL.META_ARCHITECTURE in ("MaskFormer", "SemanticSegmentor", "PoseEstimator"):
            for number, sample in enumerate(self.batch):
                if problem := _find_problem(sample, cfg):
                    raise CheckpointError(f"{path}: batch[{number}].{problem}")

    def write(self, path: Path) -> None:
        """
        Raises:
            CheckpointError: the system refused, or a sample has a value that only a pickle could
                hold.
        """
        content = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        save_archive(path, content)


def record_fault(
    cfg: CfgNode, loop: TrainLoop, batch: list[Sample], weights: dict[str, torch.Tensor]
) -> str:
    """Write the step that ``loop`` is at to ``OUTPUT_DIR``/fault_(iteration)_rank(rank).pth.

    Returns:
        for the message of the fault, the command that repeats the step, or the reason why nothing
        could be written.
    """
    path = Path(cfg.OUTPUT_DIR, f"fault_{loop.iter:07d}_rank{loop.rank}.pth")
    step = RecordedStep(without_trust(cfg).dump(), loop.seed, loop.iter, loop.rank, weights, batch)
    try:
        step.write(path)
    except CheckpointError as error:
        return str(error)
    return f"to see it again: proscale replay {path}"


def _plain(value: Any) -> Any:
    """``value`` of types that are read without running code."""
    # torch.load with weights_only reads tensors, numbers, texts, lists and dictionaries.
    if isinstance(value, Instances):
        fields = {name: _plain(field) for name, field in value.get_fields().items()}
        return {_KIND: "Instances", "image_size": list(value.image_size), "fields": fields}
    for kind, structure in _STRUCTURES.items():
        if isinstance(value, structure):
            return {_KIND: kind, "tensor": value.tensor}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (torch.Tensor, str, bool, int, float)):
        return value
    raise CheckpointError(f"not recorded: a sample has a {type(value).__name__} in it")


def _restore(value: Any) -> Any:
    """The argument of ``_plain``, with lists in place of tuples."""
    if isinstance(value, list):
        return [_restore(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind == "Instances":
        return Instances(tuple(value["image_size"]), **_restore(value["fields"]))
    if _KIND not in value:
        return {name: _restore(item) for name, item in value.items()}
    if not isinstance(kind, str) or kind not in _STRUCTURES:
        expected = ", ".join(("Instances", *_STRUCTURES))
        raise ValueError(f"{_KIND} is {shown(kind)}: expected {expected}")
    return _STRUCTURES[kind](value["tensor"])


def _find_problem(sample: Any, cfg: CfgNode) -> str | None:
    """The part of a sample that a model of ``cfg`` cannot be trained with, and what is expected."""
    head, channels = cfg.MODEL.SEM_SEG_HEAD, len(cfg.MODEL.PIXEL_MEAN)
    image, *size = _tensor_and_shape(sample, "image")
    if image is None or len(size) != 3 or size[0] != channels or 0 in size:
        return f"image: expected a tensor ({channels}, H, W)"
    if not image.is_floating_point() and image.dtype != torch.uint8:
        return f"image is of {image.dtype}: expected pixels"
    if cfg.MODEL.META_ARCHITECTURE == "PoseEstimator":
        return _find_pose_problem(sample, cfg)
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        labels, *shape = _tensor_and_shape(sample, "sem_seg")
        if labels is None or labels.dtype != torch.int64 or shape != size[1:]:
            return "sem_seg: expected a tensor (H, W) of int64, as large as the image"
        labels, name = labels[labels != head.IGNORE_VALUE], "sem_seg"
    else:
        instances = sample.get("instances")
        if not isinstance(instances, Instances) or list(instances.image_size) != size[1:]:
            return "instances: expected instances of an image of its size"
        targets = instances.get_fields()
        masks, *shape = _tensor_and_shape(targets, "gt_masks")
        if masks is None or shape[1:] != size[1:]:
            return "instances.gt_masks: expected masks (N, H, W), as large as the image"
        labels, *shape = _tensor_and_shape(targets, "gt_classes")
        if labels is None or labels.dtype != torch.int64 or len(shape) != 1:
            return "instances.gt_classes: expected a tensor (N,) of int64"
        name = "instances.gt_classes"
    wrong = labels[(labels < 0) | (labels >= head.NUM_CLASSES)]
    if len(wrong):
        return f"{name} has class {wrong[0]}: expected 0 to {head.NUM_CLASSES - 1}"
    return None


def _find_pose_problem(sample: dict[str, Any], cfg: CfgNode) -> str | None:
    """The same of the rest of a person's crop."""
    width, height = cfg.MODEL.POSE.INPUT_SIZE
    if list(sample["image"].shape[1:]) != [height, width]:
        return f"image: expected {height}x{width} pixels, MODEL.POSE.INPUT_SIZE"
    count = cfg.MODEL.POSE_HEAD.NUM_KEYPOINTS
    for name, expected in (("keypoints", [count, 2]), ("visible", [count])):
        values, *shape = _tensor_and_shape(sample, name)
        if values is None or not values.is_floating_point() or shape != expected:
            return f"{name}: expected a tensor {tuple(expected)} of floats"
    return None


def _tensor_and_shape(sample: Any, name: str) -> tuple[Any, ...]:
    """A tensor of a sample, in a structure or not, and its shape; None if it is not there."""
    value = sample.get(name) if isinstance(sample, dict) else None
    value = getattr(value, "tensor", value)
    return (value, *value.shape) if isinstance(value, torch.Tensor) else (None,)
