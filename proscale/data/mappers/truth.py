"""Reads what a data set says about an image, for each of the three tasks, and checks it."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from proscale.data.formats.label_image import read_label_image
from proscale.data.formats.panoptic_png import VOID, read_panoptic_png
from proscale.data.mappers.augmentation import Size
from proscale.data.mappers.targets import (
    Annotation,
    Annotations,
    LabelMap,
    SegmentMap,
    mask_drawer,
    occurring,
)
from proscale.errors import DataError


class Truth(Protocol):
    """Reads one kind of annotation."""

    key: str
    """What an entry must have."""

    def read(self, entry: Mapping[str, Any], size: Size) -> Annotation:
        """What an entry says about its image, which is of this size before augmentation.

        Raises:
            FileNotFoundError: a file is not there.
            DataError: it is wrong; the message names the file, and the segment if it is one.
        """


class PanopticTruth:
    """Every segment that is no crowd, thing or stuff, is a target.

    Entries have ``pan_seg_file_name`` and ``segments_info``, as from
    ``proscale.data.datasets.coco_panoptic.load_coco_panoptic`` or Detectron2's own.
    """

    key = "pan_seg_file_name"

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "PanopticTruth":
        return cls()

    def read(self, entry: Mapping[str, Any], size: Size) -> SegmentMap:
        path = entry["pan_seg_file_name"]
        ids = read_panoptic_png(path)
        _check_size(entry, size, path, ids)
        listed = {segment["id"] for segment in entry["segments_info"]}
        drawn = occurring(ids)
        if drawn != listed:
            raise DataError(
                f"{path}: segments without pixels {sorted(listed - drawn)}, pixels without "
                f"segments {sorted(drawn - listed)}; its ids must be those of segments_info, and "
                f"{VOID} for void"
            )
        targets = [s for s in entry["segments_info"] if not s.get("iscrowd", 0)]
        return SegmentMap(ids, {s["id"]: s["category_id"] for s in targets})


class SemanticTruth:
    """Every class in the image is a target.

    Entries have ``sem_seg_file_name``, an image of class ids.

    Args:
        num_classes: labels are below it.
        ignore_label: label of pixels without a class.
    """

    key = "sem_seg_file_name"

    def __init__(self, *, num_classes: int, ignore_label: int) -> None:
        self.num_classes = num_classes
        self.ignore_label = ignore_label

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "SemanticTruth":
        """
        Raises:
            ValueError: ``MODEL.SEM_SEG_HEAD.IGNORE_VALUE`` is not what a training set ignores.
        """
        head = cfg.MODEL.SEM_SEG_HEAD
        for name in cfg.DATASETS.TRAIN:
            ignored = MetadataCatalog.get(name).get("ignore_label", head.IGNORE_VALUE)
            if ignored != head.IGNORE_VALUE:
                raise ValueError(
                    f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}: expected "
                    f"{ignored}, the ignore_label of data set {name}"
                )
        return cls(num_classes=head.NUM_CLASSES, ignore_label=head.IGNORE_VALUE)

    def read(self, entry: Mapping[str, Any], size: Size) -> LabelMap:
        path = entry["sem_seg_file_name"]
        labels = read_label_image(path).astype(np.int64)
        _check_size(entry, size, path, labels)
        ids = np.where(labels == self.ignore_label, VOID, labels + 1)
        classes = {id_: id_ - 1 for id_ in sorted(occurring(ids))}
        wrong = [class_ for class_ in classes.values() if class_ >= self.num_classes]
        if wrong:
            raise DataError(
                f"{path}: it has the labels {wrong}: expected 0 to {self.num_classes - 1}, "
                f"since MODEL.SEM_SEG_HEAD.NUM_CLASSES is {self.num_classes}, and "
                f"{self.ignore_label} for no class"
            )
        return LabelMap(ids, classes, self.ignore_label)


class InstanceTruth:
    """Every annotated instance that is no crowd is a target.

    Entries have ``annotations`` in Detectron2's format.
    """

    key = "annotations"

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "InstanceTruth":
        """
        Raises:
            ValueError: the crop shall look at categories, but instances do not label every pixel.
        """
        crop = cfg.INPUT.CROP
        if crop.ENABLED and crop.SINGLE_CATEGORY_MAX_AREA < 1:
            raise ValueError(
                f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {crop.SINGLE_CATEGORY_MAX_AREA}: expected "
                "1.0 for instances, which do not label every pixel"
            )
        return cls()

    def read(self, entry: Mapping[str, Any], size: Size) -> Annotations:
        targets = []
        for index, annotation in enumerate(entry["annotations"]):
            if annotation.get("iscrowd", 0):
                continue
            try:
                draw = mask_drawer(annotation.get("segmentation"), size)
            except ValueError as error:
                raise DataError(f"{_where(entry, index)}: {error}") from error
            targets.append((draw, annotation["category_id"]))
        return Annotations(targets)


def _where(entry: Mapping[str, Any], index: int) -> str:
    annotations = entry["annotations"]
    return (
        f"{entry['file_name']}: annotation {index} of {len(annotations)} (contiguous category_id "
        f"{annotations[index]['category_id']})"
    )


def _check_size(entry: Mapping[str, Any], size: Size, path: str, labels: np.ndarray) -> None:
    if labels.shape != size:
        raise DataError(
            f"{path} has (height, width) {labels.shape}, but its image {entry['file_name']} {size}"
        )
