"""Sides and halves of the body that a model is made for, from the metadata of its data sets.

Keys are Detectron2's, ``keypoint_names`` and ``keypoint_flip_map``, and ``keypoint_upper_body``,
the names of the keypoints above the hips.
"""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from proscale.errors import ConfigError


def flip_indices(cfg: CfgNode) -> list[int]:
    """Of each keypoint its counterpart on the other side of the body, itself where there is none.

    Raises:
        ConfigError: the first data set names no keypoints, or not as many as
            ``MODEL.POSE_HEAD.NUM_KEYPOINTS``.
    """
    metadata = _metadata(cfg)
    position = {name: index for index, name in enumerate(metadata.keypoint_names)}
    # Pairs of names, each to be read in both directions.
    pairs = metadata.get("keypoint_flip_map", ())
    mirror = {name: other for pair in pairs for name, other in (pair, pair[::-1])}
    return [position[mirror.get(name, name)] for name in metadata.keypoint_names]


def upper_body(cfg: CfgNode) -> list[int]:
    """The keypoints of the upper half of the body; empty where halves are not known.

    Raises:
        ConfigError: see :func:`flip_indices`.
    """
    metadata = _metadata(cfg)
    names = set(metadata.get("keypoint_upper_body", ()))
    return [index for index, name in enumerate(metadata.keypoint_names) if name in names]


def _metadata(cfg: CfgNode) -> Metadata:
    # Of several data sets the first one; they describe the same keypoints.
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    metadata = MetadataCatalog.get(names[0]) if names else Metadata()
    count, expected = len(metadata.get("keypoint_names", ())), cfg.MODEL.POSE_HEAD.NUM_KEYPOINTS
    if not count:
        raise ConfigError(
            f"DATASETS.TRAIN is {tuple(cfg.DATASETS.TRAIN)}: expected a data set with keypoints, "
            "such as keypoints_coco_2017_train, whose names say what is left and right"
        )
    if count != expected:
        raise ConfigError(
            f"MODEL.POSE_HEAD.NUM_KEYPOINTS is {expected}: expected {count}, the keypoints of data "
            f"set {names[0]}"
        )
    return metadata
