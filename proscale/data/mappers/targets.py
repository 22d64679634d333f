"""What an image's annotation says, before and after augmentation: which pixels are of which class.

Segments that do not overlap are a map of ids, instances that may are a list of annotations. Both
become the ``instances`` that the model is trained with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pycocotools.mask
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances, polygons_to_bitmask

from proscale.data.formats.panoptic_png import VOID, id_to_rgb, rgb_to_id
from proscale.data.formats.relabel import relabel
from proscale.data.formats.run_lengths import run_lengths
from proscale.data.mappers.augmentation import Size

MaskDrawer = Callable[[T.TransformList, Size], np.ndarray]
"""From what was done to the image, and its size after that, to an (H, W) bool mask."""


class Annotation(Protocol):
    """What a data set says about one image."""

    def targets(
        self, transforms: T.TransformList, image_size: Size, padded_size: Size
    ) -> dict[str, Any]:
        """What a training sample has besides its image.

        Args:
            transforms: what was done to the image.
            image_size: the image's size after that.
            padded_size: the sample's; what is padded, at the right and the bottom, is in no mask.

        Returns:
            at least ``instances`` of ``padded_size`` with N targets, those that have pixels:
            ``gt_classes`` (N,) int64 and ``gt_masks``, BitMasks of (N, H, W). N may be 0.
        """


@dataclass(frozen=True)
class SegmentMap:
    """Segments without overlap.

    Attributes:
        ids: (H, W) integers, the segment of every pixel.
        classes: of every segment that is a target its contiguous class id, in the order of the
            targets. Ids that are missing here (void, crowds) belong to no target.
    """

    ids: np.ndarray
    classes: Mapping[int, int]

    def category_colors(self) -> np.ndarray:
        """(H, W, 3) uint8: the label map that ``CategoryLimitedCrop`` describes."""
        # Crowds are unlabelled here, like void.
        ids = {VOID, *occurring(self.ids)}
        coded = {id_: self.classes.get(id_, -1) + 1 for id_ in ids}
        return id_to_rgb(relabel(self.ids, coded, np.int32))

    def targets(
        self, transforms: T.TransformList, image_size: Size, padded_size: Size
    ) -> dict[str, Any]:
        """``instances`` with an element for every target that has pixels, see ``Annotation``."""
        return {"instances": self._transformed(transforms, padded_size)._instances()}

    def _transformed(self, transforms: T.TransformList, padded_size: Size) -> "SegmentMap":
        # As colours, because Detectron2 resizes 8-bit arrays with PIL, whose nearest neighbour is
        # that of the pixel's centre; other types go through PyTorch's, off by half a pixel.
        ids = rgb_to_id(transforms.apply_segmentation(id_to_rgb(self.ids)))
        return SegmentMap(pad(ids.astype(np.int32), padded_size, VOID), self.classes)

    def _instances(self) -> Instances:
        visible = occurring(self.ids)
        classes = {id_: class_ for id_, class_ in self.classes.items() if id_ in visible}
        ids = torch.tensor(list(classes), dtype=torch.int32)
        masks = torch.from_numpy(self.ids) == ids[:, None, None]
        return _instances(masks, list(classes.values()))


@dataclass(frozen=True)
class LabelMap(SegmentMap):
    """Segments that are classes: class c has the id c + 1.

    Attributes:
        ignore_label: stands in ``sem_seg`` where there is void.
    """

    ignore_label: int

    def targets(
        self, transforms: T.TransformList, image_size: Size, padded_size: Size
    ) -> dict[str, Any]:
        """Besides ``instances`` the augmented label map: ``sem_seg`` (H, W) int64."""
        augmented = self._transformed(transforms, padded_size)
        ids = torch.from_numpy(augmented.ids).long()
        return {
            "instances": augmented._instances(),
            "sem_seg": torch.where(ids == VOID, self.ignore_label, ids - 1),
        }


@dataclass(frozen=True)
class Annotations:
    """Instances that may overlap.

    Attributes:
        instances: of every target how to draw it, see ``mask_drawer``, and its contiguous class id.
    """

    instances: Sequence[tuple[MaskDrawer, int]]

    def targets(
        self, transforms: T.TransformList, image_size: Size, padded_size: Size
    ) -> dict[str, Any]:
        """``instances`` with an element for every target that has pixels, see ``Annotation``."""
        height, width = image_size
        masks, classes = [], []
        for draw, class_ in self.instances:
            mask = draw(transforms, image_size)
            if mask.any():
                masks.append(mask)
                classes.append(class_)
        padded = torch.zeros(len(masks), *padded_size, dtype=torch.bool)
        if masks:
            padded[:, :height, :width] = torch.from_numpy(np.stack(masks))
        return {"instances": _instances(padded, classes)}


def mask_drawer(segmentation: Any, size: Size) -> MaskDrawer:
    """How to draw a COCO ``segmentation`` after augmentation.

    Polygons are moved before they are drawn, so that they stay sharp when they are enlarged.

    Args:
        segmentation: polygons [[x0, y0, x1, y1, …], …] in pixels, or run lengths.
        size: of the image it belongs to.

    Raises:
        ValueError: it is neither, or of another size.
    """
    code = run_lengths(segmentation, *size)
    if isinstance(segmentation, Mapping):
        return lambda transforms, image_size: transforms.apply_segmentation(
            pycocotools.mask.decode(code)
        ).astype(bool)
    corners = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]

    def draw(transforms: T.TransformList, image_size: Size) -> np.ndarray:
        # Not apply_polygons, which clips them with a library that is not required: drawing does.
        moved = [transforms.apply_coords(points.copy()).ravel() for points in corners]
        return polygons_to_bitmask(moved, *image_size)

    return draw


def pad(array: np.ndarray, size: Size, value: int) -> np.ndarray:
    """Extend (H, W, …) at the right and the bottom to ``size``."""
    height, width = array.shape[:2]
    padded = np.full((*size, *array.shape[2:]), value, array.dtype)
    padded[:height, :width] = array
    return padded


def occurring(ids: np.ndarray) -> set[int]:
    """The ids in (H, W) ``ids`` other than void."""
    flat = ids.ravel()
    # The first pixel of every run along the rows is enough, and far less to sort.
    is_start = np.ones(flat.size, dtype=bool)
    is_start[1:] = flat[1:] != flat[:-1]
    return set(np.unique(flat[is_start]).tolist()) - {VOID}


def _instances(masks: torch.Tensor, classes: Sequence[int]) -> Instances:
    instances = Instances(tuple(masks.shape[1:]))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = BitMasks(masks)
    return instances
