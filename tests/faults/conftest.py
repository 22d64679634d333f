"""Where faulty input is met: every place is called as the commands call it, and tells what it says.

A case of the tables beside this file is a fault, the places that meet it, and words that must be
told: the file or key, and what is accepted.
"""

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances

from proscale.data import build_mapper
from proscale.data.check import check_datasets
from proscale.data.datasets.own import register_own_data
from proscale.data.datasets.shapes import CATEGORIES
from proscale.errors import CheckpointError, ConfigError, DataError
from proscale.evaluation.instance_evaluator import InstanceEvaluator
from proscale.evaluation.panoptic_evaluator import CocoPanopticEvaluator
from proscale.evaluation.semantic_evaluator import SemanticEvaluator

NAMED = (ConfigError, CheckpointError, DataError, FileNotFoundError)
"""Errors that commands end with in one sentence; any other is a crash."""

MAPPERS = {
    "panoptic": "coco_panoptic_lsj",
    "instance": "coco_instance_lsj",
    "semantic": "mask_former_semantic",
}


class Files:
    """The files of ``own_data``; what is spoilt is in the training split, of 3 images of 64×64."""

    def __init__(self, root: Path):
        self.root = root
        self.image = root / "train" / "000001.jpg"
        self.panoptic = root / "panoptic_train" / "000001.png"
        self.labels = root / "labels_train" / "000001.png"
        self.panoptic_json = root / "annotations" / "panoptic_train.json"
        self.instances_json = root / "annotations" / "instances_train.json"

    def edit_panoptic(self, change):
        self._edit(self.panoptic_json, change)

    def edit_instances(self, change):
        self._edit(self.instances_json, change)

    def _edit(self, path, change):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


@pytest.fixture
def files(own_data) -> Files:
    return Files(own_data)


@pytest.fixture
def tell(caplog):
    """Returns a function: an action → the message of its named error, else the warnings' text."""

    def tell(action) -> str:
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            try:
                action()
            except NAMED as error:
                return str(error)
            return "\n".join(record.getMessage() for record in caplog.records)

    return tell


@pytest.fixture
def places(own_block, cfg):
    """By name how input is met: a function of the task."""
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.IMAGE_SIZE = (64,), 64
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 9

    def register(task):
        # Without names the labels that are found would be the classes.
        names = {"CLASSES": [f"class {i}" for i in range(9)]} if task == "semantic" else {}
        register_own_data([own_block(task) | names])

    def entries(task):
        register(task)
        return DatasetCatalog.get(f"own_{task}_train")

    def train(task):
        cfg.INPUT.DATASET_MAPPER_NAME = MAPPERS[task]
        mapper = build_mapper(cfg, is_train=True)
        return [mapper(entry) for entry in entries(task)]

    def evaluate(task):
        listed = entries(task)
        mapper = build_mapper(cfg, is_train=False)
        evaluator = {
            "panoptic": CocoPanopticEvaluator,
            "instance": InstanceEvaluator,
            "semantic": SemanticEvaluator,
        }[task](f"own_{task}_train")
        evaluator.reset()
        samples = [mapper(entry) for entry in listed]
        for sample in samples:
            evaluator.process([sample], [_prediction(sample["height"], sample["width"])])
        evaluator.evaluate()
        return samples

    def check(task):
        register(task)
        report = check_datasets([f"own_{task}_train"], workers=1)
        # Told as the command would, which ends with exit status 1 if there are errors.
        raise DataError("\n".join(f"{f.kind} {f.file}: {f.detail}" for f in report.problems))

    return {"train": train, "evaluate": evaluate, "check": check}


_THINGS = sum(category["isthing"] for category in CATEGORIES)


def _prediction(height: int, width: int) -> dict:
    instances = Instances((height, width))
    # Of every class: truth of a class that is not predicted needs no comparison.
    instances.pred_masks = torch.ones(_THINGS, height, width, dtype=torch.bool)
    instances.scores = torch.ones(_THINGS)
    instances.pred_classes = torch.arange(_THINGS)
    segment = {"id": 1, "isthing": False, "category_id": 8}
    return {
        "panoptic_seg": (torch.ones(height, width, dtype=torch.int32), [segment]),
        "instances": instances,
        "sem_seg": torch.zeros(height, width, dtype=torch.int64),
    }
