"""The two published ways to augment a training image, read from the keys of ``INPUT``.

Large-scale jitter (Ghiasi et al., Simple Copy-Paste, CVPR 2021) is Mask2Former's for COCO: flip,
random scale, crop to a fixed size. Short-edge scaling is its way for everything else: a random
length of the shorter edge, a crop in which no category may take up too much, SSD's distortion of
colours, flip. Both leave padding to the mapper: images and labels are padded with different values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

from proscale.data.formats.panoptic_png import VOID, rgb_to_id
from proscale.errors import ConfigError
from proscale.utils.types import Size


@dataclass(frozen=True)
class AugmentationScheme:
    """How an image becomes a training sample.

    Attributes:
        augmentations: in order.
        padded_size: from an image's size after them to the size of the sample.
        crops_by_category: they look at the label map that :class:`CategoryLimitedCrop` describes.
    """

    augmentations: list[T.Augmentation]
    padded_size: Callable[[Size], Size]
    crops_by_category: bool = False


def large_scale_jitter(cfg: CfgNode) -> AugmentationScheme:
    """Random flip, random scale in ``MIN_SCALE`` … ``MAX_SCALE``, crop to ``IMAGE_SIZE`` pixels.

    An image scaled by 1 just fits into the square of the samples, which ``IMAGE_SIZE`` is the side
    of; smaller ones are padded to it.
    """
    node, side = cfg.INPUT, cfg.INPUT.IMAGE_SIZE
    return AugmentationScheme(
        augmentations=[
            *_random_flip(node.RANDOM_FLIP),
            # Large-scale jitter: scale, then crop to the square.
            ResizeScale(node.MIN_SCALE, node.MAX_SCALE, side, side),
            T.FixedSizeCrop((side, side), pad=False),
        ],
        padded_size=lambda size: (side, side),
    )


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
    limits_category = node.CROP.ENABLED and node.CROP.SINGLE_CATEGORY_MAX_AREA < 1
    if node.CROP.ENABLED:
        types = ("absolute", "absolute_range", "relative", "relative_range")
        _accept("INPUT.CROP.TYPE", node.CROP.TYPE, types)
        if limits_category:
            limit = node.CROP.SINGLE_CATEGORY_MAX_AREA
            augmentations.append(CategoryLimitedCrop(node.CROP.TYPE, node.CROP.SIZE, limit))
        else:
            augmentations.append(T.RandomCrop(node.CROP.TYPE, node.CROP.SIZE))
    if node.COLOR_AUG_SSD:
        _accept("INPUT.FORMAT (with INPUT.COLOR_AUG_SSD)", node.FORMAT, ("RGB", "BGR"))
        # SSD's distortion: brightness, contrast, saturation and hue, in random order.
        augmentations.append(ColorAugSSDTransform(img_format=node.FORMAT))
    augmentations += _random_flip(node.RANDOM_FLIP)
    # Rounded up to whole steps of the backbone's coarsest map.
    step = max(node.SIZE_DIVISIBILITY, 1)

    def padded_size(size: Size) -> Size:
        height, width = (-(-length // step) * step for length in size)
        return height, width

    return AugmentationScheme(augmentations, padded_size, crops_by_category=limits_category)


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

    Args:
        crop_type, crop_size: as Detectron2's ``RandomCrop`` takes them.
        single_category_max_area: fraction of the labelled pixels that is too much.
    """

    def __init__(self, crop_type: str, crop_size: Size, single_category_max_area: float):
        # Detectron2 leaves out one category of the comparison: here void.
        super().__init__(crop_type, crop_size, single_category_max_area, ignored_category=VOID)

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        return super().get_transform(image, rgb_to_id(sem_seg))


def _random_flip(flip: str) -> list[T.Augmentation]:
    _accept("INPUT.RANDOM_FLIP", flip, ("none", "horizontal", "vertical"))
    if flip == "none":
        return []
    # One flip with probability one half, which moves images and masks alike.
    is_horizontal = flip == "horizontal"
    return [T.RandomFlip(horizontal=is_horizontal, vertical=not is_horizontal)]


def _accept(key: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ConfigError(f"{key} is {value!r}: expected {', '.join(map(repr, accepted))}")
