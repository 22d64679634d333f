"""Mappers: from an entry of a data set to what the model takes, chosen by configuration."""

from collections.abc import Callable

from detectron2.config import CfgNode

from proscale.data.mappers.evaluation_mapper import EvaluationMapper
from proscale.data.mappers.training_mapper import MAPPERS, TrainingMapper

__all__ = ["MAPPERS", "EvaluationMapper", "TrainingMapper", "build_mapper"]


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict], dict]:
    """Build ``INPUT.DATASET_MAPPER_NAME`` for training, :class:`EvaluationMapper` otherwise.

    Raises:
        ValueError: there is no such mapper, or a key that it reads has a value not accepted.
    """
    return TrainingMapper(cfg) if is_train else EvaluationMapper(cfg)
