"""Chooses the mapper for a configuration."""

from collections.abc import Callable

from detectron2.config import CfgNode

from proscale.data.mappers.mapper import EvaluationMapper, TrainingMapper
from proscale.data.mappers.pose_mapper import PoseMapper


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict], dict]:
    """Build ``INPUT.DATASET_MAPPER_NAME`` for training, :class:`EvaluationMapper` otherwise; for a
    ``PoseEstimator`` :class:`PoseMapper`.

    Raises:
        ConfigError: there is no such mapper, or a key that it reads has a value not accepted.
    """
    if cfg.MODEL.META_ARCHITECTURE == "PoseEstimator":
        return PoseMapper(cfg, is_train)
    return TrainingMapper(cfg) if is_train else EvaluationMapper(cfg)
