"""Mappers: from an entry of a data set to what the model takes, chosen by configuration."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from proscale.data.mappers.coco_panoptic_lsj import COCOPanopticLSJMapper

# Training mappers by their published names.
MAPPERS: dict[str, Callable[..., Any]] = {"coco_panoptic_lsj": COCOPanopticLSJMapper}


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict], dict]:
    """Build ``INPUT.DATASET_MAPPER_NAME`` for training, Detectron2's mapper for evaluation.

    Raises:
        ValueError: there is no such mapper.
    """
    if not is_train:
        return DatasetMapper(cfg, is_train=False)
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in MAPPERS:
        raise ValueError(f"INPUT.DATASET_MAPPER_NAME is {name!r}; accepted are {sorted(MAPPERS)}")
    return MAPPERS[name](cfg)
