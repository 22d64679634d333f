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

from proscale.checkpoint.files import read_checkpoint, save_archive
from proscale.config import without_trust
from proscale.engine.train_loop import Sample, TrainLoop
from proscale.errors import CheckpointError

_STRUCTURES = {"BitMasks": BitMasks, "Boxes": Boxes}
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
        return cls(**{name: _restore(content[name]) for name in names})

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
    if value.get(_KIND) == "Instances":
        return Instances(tuple(value["image_size"]), **_restore(value["fields"]))
    if _KIND in value:
        return _STRUCTURES[value[_KIND]](value["tensor"])
    return {name: _restore(item) for name, item in value.items()}
