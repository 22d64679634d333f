"""Mappers: from an entry of a data set to a training sample or an evaluated image."""

from proscale.data.mappers.mapper import MAPPERS, EvaluationMapper, TrainingMapper, build_mapper

__all__ = ["MAPPERS", "EvaluationMapper", "TrainingMapper", "build_mapper"]
