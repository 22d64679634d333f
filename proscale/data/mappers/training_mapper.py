"""Training samples: an augmentation scheme applied to an image and to what is known about it.

The published mappers are the pairs of two schemes and three kinds of truth.
"""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from proscale.data.mappers.augmentation import Scheme, large_scale_jitter, short_edge_scaling
from proscale.data.mappers.entry_image import read_entry_image
from proscale.data.mappers.targets import pad
from proscale.data.mappers.truth import InstanceTruth, PanopticTruth, SemanticTruth, Truth
from proscale.errors import DataError

MAPPERS = {
    "coco_instance_lsj": (large_scale_jitter, InstanceTruth),
    "coco_panoptic_lsj": (large_scale_jitter, PanopticTruth),
    "mask_former_instance": (short_edge_scaling, InstanceTruth),
    "mask_former_panoptic": (short_edge_scaling, PanopticTruth),
    "mask_former_semantic": (short_edge_scaling, SemanticTruth),
}
"""Of each published name the scheme, and what a target is."""

# Grey, about the mean of the pixel values.
_IMAGE_PADDING = 128

_KEPT = ("file_name", "image_id")
"""Keys of an entry that its sample keeps."""


class TrainingMapper:
    """Maps an entry of a data set to an augmented image and its targets.

    Args:
        scheme: what is done to the image, and alike to its annotation.
        truth: reads the annotation.
        image_format: of the image's channels, as Detectron2's ``read_image`` accepts it.
    """

    @configurable
    def __init__(self, *, scheme: Scheme, truth: Truth, image_format: str) -> None:
        self.augmentations = T.AugmentationList(scheme.augmentations)
        self.padded_size = scheme.padded_size
        self.crops_by_category = scheme.crops_by_category
        self.truth = truth
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """
        Raises:
            ValueError: ``INPUT.DATASET_MAPPER_NAME`` or another key has a value not accepted.
        """
        name = cfg.INPUT.DATASET_MAPPER_NAME
        if name not in MAPPERS:
            raise ValueError(f"INPUT.DATASET_MAPPER_NAME is {name!r}: expected {sorted(MAPPERS)}")
        build_scheme, truth = MAPPERS[name]
        return {
            "truth": truth.from_config(cfg),
            "scheme": build_scheme(cfg),
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            entry: in Detectron2's format, with what ``truth`` needs. It is not changed.

        Returns:
            ``file_name``, ``image_id`` if the entry has one, ``height`` and ``width`` of the file;
            ``image`` (3, H, W) uint8, padded at the right and the bottom; and the targets:
            ``instances`` with ``gt_classes`` (N,) int64 and ``gt_masks``, BitMasks of (N, H, W).
            Void, crowd and padding belong to no mask; N may be 0. Semantic samples also have
            ``sem_seg`` (H, W) int64, the label to ignore where there is no class.

        Raises:
            FileNotFoundError: the image or a file of its annotation is not there.
            DataError: the image cannot be read, the entry has no annotation of the kind, the
                annotation is wrong, or image and annotation have different sizes; names the file,
                and the segment if it is one.
        """
        if self.truth.key not in entry:
            raise DataError(
                f"{entry['file_name']}: its data set has no {self.truth.key}, which the mapper "
                "chosen by INPUT.DATASET_MAPPER_NAME reads; what there is: "
                f"{', '.join(sorted(entry))}"
            )
        image = read_entry_image(entry, self.image_format)
        sample = {key: entry[key] for key in _KEPT if key in entry}
        sample["height"], sample["width"] = image.shape[:2]
        annotation = self.truth.read(entry, image.shape[:2])

        colors = annotation.category_colors() if self.crops_by_category else None
        aug_input = T.AugInput(image, sem_seg=colors)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        padded_size = self.padded_size(image.shape[:2])
        sample |= annotation.targets(transforms, image.shape[:2], padded_size)
        padded = pad(image, padded_size, _IMAGE_PADDING)
        sample["image"] = torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1)))
        return sample
