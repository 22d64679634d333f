"""Mappers: from an entry of a data set to a training sample, or to an image as it is evaluated.

The published training mappers are pairs of a way to augment, read from the keys of ``INPUT``, and a
kind of annotation. Large-scale jitter (Ghiasi et al., Simple Copy-Paste, CVPR 2021) is
Mask2Former's for COCO: flip, random scale, crop to a fixed size. Short-edge scaling is its way for
everything else: a random length of the shorter edge, a crop in which no category may take up too
much, SSD's distortion of colours, flip. Crop-and-resize is DETR's, for boxes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

from proscale.data.formats.image_file import VOID, check_stated_size, read_image, rgb_to_id
from proscale.data.mappers.annotations import (
    AnnotationReader,
    BoxReader,
    InstanceReader,
    PanopticReader,
    SegmentMap,
    SemanticReader,
    pad,
)
from proscale.errors import ConfigError, DataError
from proscale.utils.types import Size

# Grey, about the mean of the pixel values.
_IMAGE_PADDING = 128

# Keys of an entry that its training sample keeps, and those that an evaluated sample leaves out.
_KEPT = ("file_name", "image_id")
_ANNOTATIONS = ("annotations", "sem_seg_file_name", "label_table")


class AugmentationScheme(NamedTuple):
    """How an image becomes a training sample, which is padded to multiples of ``size_divisor``.

    With ``crops_by_category`` augmentations look at the label map of :class:`CategoryLimitedCrop`.
    """

    augmentations: list[T.Augmentation]
    size_divisor: int
    crops_by_category: bool = False


def large_scale_jitter(cfg: CfgNode) -> AugmentationScheme:
    """Random flip, random scale in ``MIN_SCALE`` … ``MAX_SCALE``, crop to ``IMAGE_SIZE`` pixels.

    An image scaled by 1 just fits into the square of that side; smaller ones are padded to it.
    """
    node, side = cfg.INPUT, cfg.INPUT.IMAGE_SIZE
    augmentations = [
        *_random_flip(node.RANDOM_FLIP),
        # Large-scale jitter: scale, then crop to the square.
        ResizeScale(node.MIN_SCALE, node.MAX_SCALE, side, side),
        T.FixedSizeCrop((side, side), pad=False),
    ]
    return AugmentationScheme(augmentations, size_divisor=side)


def short_edge_scaling(cfg: CfgNode) -> AugmentationScheme:
    """Resize the short edge to ``MIN_SIZE_TRAIN``, crop, distort colours, flip.

    Samples are padded to a multiple of ``SIZE_DIVISIBILITY``.
    """
    node = cfg.INPUT
    _accept("INPUT.MIN_SIZE_TRAIN_SAMPLING", node.MIN_SIZE_TRAIN_SAMPLING, ("choice", "range"))
    augmentations: list[T.Augmentation] = [
        ResizeShortestEdge(node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN, node.MIN_SIZE_TRAIN_SAMPLING)
    ]
    # The crop is drawn again while one category covers more than this fraction.
    limit = node.CROP.SINGLE_CATEGORY_MAX_AREA
    limits_category = node.CROP.ENABLED and limit < 1
    if node.CROP.ENABLED:
        types = ("absolute", "absolute_range", "relative", "relative_range")
        _accept("INPUT.CROP.TYPE", node.CROP.TYPE, types)
        crop = node.CROP.TYPE, node.CROP.SIZE
        augmentations.append(
            CategoryLimitedCrop(*crop, limit) if limits_category else T.RandomCrop(*crop)
        )
    if node.COLOR_AUG_SSD:
        _accept("INPUT.FORMAT (with INPUT.COLOR_AUG_SSD)", node.FORMAT, ("RGB", "BGR"))
        # SSD's distortion: brightness, contrast, saturation and hue, in random order.
        augmentations.append(ColorAugSSDTransform(img_format=node.FORMAT))
    augmentations += _random_flip(node.RANDOM_FLIP)
    return AugmentationScheme(augmentations, max(node.SIZE_DIVISIBILITY, 1), limits_category)


def crop_and_resize(cfg: CfgNode) -> AugmentationScheme:
    """Flip; crop every second image; resize the short edge to ``MIN_SIZE_TRAIN``.

    Before the crop the short edge gets a length of ``CROP.MIN_SIZE`` (Carion et al., DETR, ECCV
    2020, §A.4). Samples are padded to a multiple of ``SIZE_DIVISIBILITY``.
    """
    node = cfg.INPUT
    resize = ResizeShortestEdge(
        node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN, node.MIN_SIZE_TRAIN_SAMPLING
    )
    augmentations = _random_flip(node.RANDOM_FLIP)
    if node.CROP.ENABLED:
        before = ResizeShortestEdge(node.CROP.MIN_SIZE, sample_style="choice")
        crop = T.AugmentationList([before, T.RandomCrop(node.CROP.TYPE, node.CROP.SIZE)])
        augmentations.append(T.RandomApply(crop, prob=0.5))
    return AugmentationScheme([*augmentations, resize], max(node.SIZE_DIVISIBILITY, 1))


def _random_flip(flip: str) -> list[T.Augmentation]:
    _accept("INPUT.RANDOM_FLIP", flip, ("none", "horizontal", "vertical"))
    if flip == "none":
        return []
    # One flip with probability one half, which moves images and masks alike.
    return [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


def _accept(key: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ConfigError(f"{key} is {value!r}: expected {', '.join(map(repr, accepted))}")


class _AtLeastOnePixel(T.Augmentation):
    """Of a very long and narrow image Detectron2 would leave no pixel along the shorter edge."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        # A scale of 0.1 takes 5000x1 pixels to 500x0 without this.
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(transform.new_h, 1), max(transform.new_w, 1)
        return transform


class ResizeShortestEdge(_AtLeastOnePixel, T.ResizeShortestEdge):
    """Detectron2's, for images of any shape."""


class ResizeScale(_AtLeastOnePixel, T.ResizeScale):
    """Detectron2's, for images of any shape."""


class CategoryLimitedCrop(T.RandomCrop_CategoryAreaConstraint):
    """A random crop, drawn again (at most ten times) while one category has too much of it.

    Detectron2's, for label maps coded as colours (H, W, 3): class c as ``id_to_rgb`` of c + 1, so
    that there may be more than 255 classes, and 0 for unlabelled pixels, which are not counted.
    """

    def __init__(self, crop_type: str, crop_size: Size, single_category_max_area: float):
        # Detectron2 leaves out one category of the comparison: here void.
        super().__init__(crop_type, crop_size, single_category_max_area, ignored_category=VOID)

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        return super().get_transform(image, rgb_to_id(sem_seg))


MAPPERS: dict[str, tuple[Callable[[CfgNode], AugmentationScheme], type[AnnotationReader]]] = {
    "coco_instance_lsj": (large_scale_jitter, InstanceReader),
    "detr_detection": (crop_and_resize, BoxReader),
    "coco_panoptic_lsj": (large_scale_jitter, PanopticReader),
    "mask_former_instance": (short_edge_scaling, InstanceReader),
    "mask_former_panoptic": (short_edge_scaling, PanopticReader),
    "mask_former_semantic": (short_edge_scaling, SemanticReader),
}
"""The scheme, and the reader of annotations, of each published name."""


class TrainingMapper:
    """Maps an entry of a data set to an augmented image and its targets.

    The scheme is applied to the image, of channels ``image_format``, and alike to its annotation.
    """

    @configurable
    def __init__(
        self, *, scheme: AugmentationScheme, reader: AnnotationReader, image_format: str
    ) -> None:
        self.augmentations = T.AugmentationList(scheme.augmentations)
        self.size_divisor = scheme.size_divisor
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
        """Map an entry in Detectron2's format, with the ``key`` of the reader. It is not changed.

        Returns:
            ``file_name``, ``image_id`` if the entry has one, ``height`` and ``width`` of the file;
            ``image`` (3, H, W) uint8, padded at the right and the bottom; and the targets:
            ``instances`` with ``gt_classes`` (N,) int64 and ``gt_masks``, BitMasks of (N, H, W), or
            for detection ``gt_boxes``, Boxes (N, 4). Void, crowd and padding belong to no mask; N
            may be 0. Semantic samples also have ``sem_seg`` (H, W) int64, the label to ignore where
            there is no class.

        Raises:
            DataError: the image or a file of its annotation is missing or cannot be read, the entry
                has no annotation of the kind, the annotation is wrong, or image and annotation have
                different sizes; names the file, and the segment if it is one.
        """
        if self.reader.key not in entry:
            raise DataError(
                f"{entry['file_name']}: its data set has no {self.reader.key}, which the mapper "
                f"chosen by INPUT.DATASET_MAPPER_NAME reads: there is {', '.join(sorted(entry))}"
            )
        # 1. Read the image and its annotation, and compare their sizes.
        image = read_entry_image(entry, self.image_format)
        sample = {key: entry[key] for key in _KEPT if key in entry}
        sample["height"], sample["width"] = image.shape[:2]
        annotation = self.reader.read(entry, image.shape[:2])
        colors = None
        if self.crops_by_category:
            assert isinstance(annotation, SegmentMap)  # InstanceReader refuses such a scheme
            colors = annotation.category_colors()
        # 2. Augment. The crop may look at the categories of the pixels.
        # Random numbers are drawn once, for the image; targets follow by the same transforms.
        aug_input = T.AugInput(image, sem_seg=colors)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        # 3. Bring the targets to the sample's size, and pad the image with grey.
        height, width = (-(-n // self.size_divisor) * self.size_divisor for n in image.shape[:2])
        sample |= annotation.targets(transforms, image.shape[:2], (height, width))
        sample["image"] = to_tensor(pad(image, (height, width), _IMAGE_PADDING))
        return sample


class EvaluationMapper:
    """Maps an entry of a data set to its image alone, resized to what the model sees.

    Evaluators read annotations themselves.
    """

    @configurable
    def __init__(self, *, resize: T.Augmentation, image_format: str) -> None:
        self.augmentations = T.AugmentationList([resize])
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        resize = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")
        return {"resize": resize, "image_format": cfg.INPUT.FORMAT}

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Map an entry in Detectron2's format. It is not changed.

        Returns:
            the entry without its annotations, ``height`` and ``width`` of the file, and ``image``
            (3, H, W) uint8.

        Raises:
            DataError: the image is missing, cannot be read, or has another size than stated.
        """
        image = read_entry_image(entry, self.image_format)
        sample = {key: value for key, value in entry.items() if key not in _ANNOTATIONS}
        sample["height"], sample["width"] = image.shape[:2]
        return {**sample, "image": self.resized(image)}

    def resized(self, image: np.ndarray) -> torch.Tensor:
        """An image (H, W, 3) uint8 as the model sees it: (3, H, W) uint8."""
        aug_input = T.AugInput(image)
        self.augmentations(aug_input)
        return to_tensor(aug_input.image)


def read_entry_image(entry: Mapping[str, Any], image_format: str) -> np.ndarray:
    """The image (H, W, C) of ``entry["file_name"]``, of the size that the entry states."""
    image = read_image(entry["file_name"], image_format)
    height, width = image.shape[:2]
    stated = entry.get("height", height), entry.get("width", width)
    check_stated_size(entry["file_name"], (height, width), stated)
    return image


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """``(H, W, C)`` as a contiguous tensor ``(C, H, W)``."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
