"""Mappers: from an entry of a data set to a training sample or an evaluated image."""

from proscale.data.mappers.build import build_mapper
from proscale.data.mappers.mapper import MAPPERS, EvaluationMapper, TrainingMapper
from proscale.data.mappers.pose_mapper import PoseMapper

__all__ = ["MAPPERS", "EvaluationMapper", "PoseMapper", "TrainingMapper", "build_mapper"]
