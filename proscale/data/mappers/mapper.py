"""Mappers: from an entry of a data set to a training sample, or to an image as it is evaluated.

The published training mappers are pairs of an augmentation scheme and a kind of annotation.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from proscale.data.formats.image_file import check_stated_size, read_image
from proscale.data.mappers.annotations import (
    AnnotationReader,
    InstanceReader,
    PanopticReader,
    SegmentMap,
    SemanticReader,
    pad,
)
from proscale.data.mappers.augmentation import (
    AugmentationScheme,
    ResizeShortestEdge,
    large_scale_jitter,
    short_edge_scaling,
)
from proscale.errors import ConfigError, DataError

MAPPERS: dict[str, tuple[Callable[[CfgNode], AugmentationScheme], type[AnnotationReader]]] = {
    "coco_instance_lsj": (large_scale_jitter, InstanceReader),
    "coco_panoptic_lsj": (large_scale_jitter, PanopticReader),
    "mask_former_instance": (short_edge_scaling, InstanceReader),
    "mask_former_panoptic": (short_edge_scaling, PanopticReader),
    "mask_former_semantic": (short_edge_scaling, SemanticReader),
}
"""The scheme, and the reader of annotations, of each published name."""

# Grey, about the mean of the pixel values.
_IMAGE_PADDING = 128

# Keys of an entry that its training sample keeps, and those that an evaluated sample leaves out.
_KEPT = ("file_name", "image_id")
_ANNOTATIONS = ("annotations", "sem_seg_file_name")


def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict], dict]:
    """Build ``INPUT.DATASET_MAPPER_NAME`` for training, :class:`EvaluationMapper` otherwise.

    Raises:
        ConfigError: there is no such mapper, or a key that it reads has a value not accepted.
    """
    return TrainingMapper(cfg) if is_train else EvaluationMapper(cfg)


class TrainingMapper:
    """Maps an entry of a data set to an augmented image and its targets.

    Args:
        scheme: applied to the image, and alike to its annotation.
        reader: of the annotation.
        image_format: of the image's channels, see ``read_image``.
    """

    @configurable
    def __init__(
        self, *, scheme: AugmentationScheme, reader: AnnotationReader, image_format: str
    ) -> None:
        self.augmentations = T.AugmentationList(scheme.augmentations)
        self.padded_size = scheme.padded_size
        self.crops_by_category = scheme.crops_by_category
        self.reader = reader
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        name = cfg.INPUT.DATASET_MAPPER_NAME
        if name not in MAPPERS:
            raise ConfigError(f"INPUT.DATASET_MAPPER_NAME is {name!r}: expected {sorted(MAPPERS)}")
        build_scheme, reader = MAPPERS[name]
        scheme, annotations = build_scheme(cfg), reader.from_config(cfg)
        return {"scheme": scheme, "reader": annotations, "image_format": cfg.INPUT.FORMAT}

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            entry: in Detectron2's format, with the ``key`` of the reader. It is not changed.

        Returns:
            ``file_name``, ``image_id`` if the entry has one, ``height`` and ``width`` of the file;
            ``image`` (3, H, W) uint8, padded at the right and the bottom; and the targets:
            ``instances`` with ``gt_classes`` (N,) int64 and ``gt_masks``, BitMasks of (N, H, W).
            Void, crowd and padding belong to no mask; N may be 0. Semantic samples also have
            ``sem_seg`` (H, W) int64, the label to ignore where there is no class.

        Raises:
            DataError: the image or a file of its annotation is missing or cannot be read, the entry
                has no annotation of the kind, the annotation is wrong, or image and annotation have
                different sizes; names the file, and the segment if it is one.
        """
        if self.reader.key not in entry:
            raise DataError(
                f"{entry['file_name']}: its data set has no {self.reader.key}, which the mapper "
                "chosen by INPUT.DATASET_MAPPER_NAME reads: there is "
                f"{', '.join(sorted(entry))}"
            )
        # 1. Read the image and its annotation, and compare their sizes.
        image = _read_image(entry, self.image_format)
        sample = {key: entry[key] for key in _KEPT if key in entry}
        sample["height"], sample["width"] = image.shape[:2]
        annotation = self.reader.read(entry, image.shape[:2])

        colors = None
        if self.crops_by_category:
            assert isinstance(annotation, SegmentMap)  # InstanceReader refuses such a scheme
            colors = annotation.category_colors()
        aug_input = T.AugInput(image, sem_seg=colors)
        # 2. Augment. The crop may look at the categories of the pixels.
        # Random numbers are drawn once, for the image; targets follow by the same transforms.
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        # 3. Bring the targets to the sample's size, and pad the image with grey.
        padded_size = self.padded_size(image.shape[:2])
        sample |= annotation.targets(transforms, image.shape[:2], padded_size)
        sample["image"] = _to_tensor(pad(image, padded_size, _IMAGE_PADDING))
        return sample


class EvaluationMapper:
    """Maps an entry of a data set to its image alone: evaluators read annotations themselves.

    Args:
        resize: to the size that the model sees.
        image_format: of the image's channels, see ``read_image``.
    """

    @configurable
    def __init__(self, *, resize: T.Augmentation, image_format: str) -> None:
        self.augmentations = T.AugmentationList([resize])
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.INPUT
        resize = ResizeShortestEdge(node.MIN_SIZE_TEST, node.MAX_SIZE_TEST, "choice")
        return {"resize": resize, "image_format": node.FORMAT}

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            entry: in Detectron2's format. It is not changed.

        Returns:
            the entry without its annotations, ``height`` and ``width`` of the file, and ``image``
            (3, H, W) uint8.

        Raises:
            DataError: the image is missing, cannot be read, or has another size than stated.
        """
        image = _read_image(entry, self.image_format)
        sample = {key: value for key, value in entry.items() if key not in _ANNOTATIONS}
        sample["height"], sample["width"] = image.shape[:2]
        return {**sample, "image": self.resized(image)}

    def resized(self, image: np.ndarray) -> torch.Tensor:
        """An image (H, W, 3) uint8 as the model sees it: (3, H, W) uint8."""
        aug_input = T.AugInput(image)
        self.augmentations(aug_input)
        return _to_tensor(aug_input.image)


def _read_image(entry: Mapping[str, Any], image_format: str) -> np.ndarray:
    """The image (H, W, C) of ``entry["file_name"]``, of the size that the entry states."""
    image = read_image(entry["file_name"], image_format)
    height, width = image.shape[:2]
    stated = entry.get("height", height), entry.get("width", width)
    check_stated_size(entry["file_name"], (height, width), stated)
    return image


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
