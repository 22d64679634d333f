"""Training samples for panoptic segmentation with large-scale jitter.

Mask2Former's augmentation for COCO (Cheng et al., CVPR 2022, §4.1; the jitter is that of Ghiasi et
al., Simple Copy-Paste, CVPR 2021): a random flip, a resize by a random scale, and a crop of fixed
size, padded where the image is smaller.
"""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances

from proscale.data.panoptic_png import VOID, id_to_rgb, read_panoptic_png, rgb_to_id

# Grey, about the mean of the pixel values.
_IMAGE_PADDING = 128


class COCOPanopticLSJMapper:
    """Maps an entry of a panoptic data set to an augmented image and its segments.

    Args:
        augmentations: as from ``large_scale_jitter``; applied to the image, and alike to the ids.
        image_size: side of the square samples in pixels; smaller results are padded at the right
            and the bottom.
        image_format: of the image's channels, as Detectron2's ``read_image`` accepts it.
    """

    @configurable
    def __init__(
        self, *, augmentations: list[T.Augmentation], image_size: int, image_format: str
    ) -> None:
        self.augmentations = T.AugmentationList(augmentations)
        self.image_size = image_size
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "augmentations": large_scale_jitter(
                cfg.INPUT.IMAGE_SIZE,
                min_scale=cfg.INPUT.MIN_SCALE,
                max_scale=cfg.INPUT.MAX_SCALE,
                flip=cfg.INPUT.RANDOM_FLIP,
            ),
            "image_size": cfg.INPUT.IMAGE_SIZE,
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, entry: dict) -> dict:
        """
        Args:
            entry: in the format of ``proscale.data.registration.load_coco_panoptic`` or of
                Detectron2's own panoptic data sets. It is not changed.

        Returns:
            ``file_name``, ``image_id``, ``height`` and ``width`` (of the file), and with S the
            ``image_size``: ``image`` (3, S, S) uint8, and ``instances`` with one element for every
            segment, thing or stuff, that is no crowd and has pixels in the crop: ``gt_classes``
            (N,) int64 and ``gt_masks``, BitMasks of (N, S, S). N may be 0. Void, crowd and padding
            belong to no mask.

        Raises:
            FileNotFoundError: the image or its PNG file is not there.
            ValueError: the PNG file's size or its ids are not those of the image or the entry.
        """
        image = utils.read_image(entry["file_name"], format=self.image_format)
        height, width = image.shape[:2]
        ids = read_panoptic_png(entry["pan_seg_file_name"])
        _check(entry, (height, width), ids)

        # As colours, because Detectron2 resizes 8-bit arrays with PIL, whose nearest neighbour is
        # that of the pixel's centre; other types go through PyTorch's, off by half a pixel.
        aug_input = T.AugInput(image, sem_seg=id_to_rgb(ids))
        self.augmentations(aug_input)
        image = self._pad(aug_input.image, _IMAGE_PADDING)
        ids = self._pad(rgb_to_id(aug_input.sem_seg).astype(np.int32), VOID)

        visible = _occurring(ids)
        segments = [
            s for s in entry["segments_info"] if not s.get("iscrowd", 0) and s["id"] in visible
        ]
        segment_ids = torch.tensor([s["id"] for s in segments], dtype=torch.int32)
        instances = Instances(ids.shape)
        instances.gt_classes = torch.tensor([s["category_id"] for s in segments], dtype=torch.int64)
        instances.gt_masks = BitMasks(torch.from_numpy(ids) == segment_ids[:, None, None])
        return {
            "file_name": entry["file_name"],
            "image_id": entry["image_id"],
            "height": height,
            "width": width,
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "instances": instances,
        }

    def _pad(self, array: np.ndarray, value: int) -> np.ndarray:
        """Extend (H, W, ...) to the right and the bottom to (S, S, ...)."""
        height, width = array.shape[:2]
        padded = np.full((self.image_size, self.image_size, *array.shape[2:]), value, array.dtype)
        padded[:height, :width] = array
        return padded


def large_scale_jitter(
    image_size: int, *, min_scale: float, max_scale: float, flip: str
) -> list[T.Augmentation]:
    """Random flip, random scale, and a random crop of at most ``image_size`` pixels a side.

    Padding is left to the mapper: Detectron2's versions pad segmentations with different values.

    Args:
        image_size: an image scaled by 1 just fits into a square with sides of so many pixels.
        min_scale: lower end of the uniform distribution of scales.
        max_scale: its upper end.
        flip: ``none``, ``horizontal`` or ``vertical``.

    Raises:
        ValueError: ``flip`` is none of these.
    """
    if flip not in ("none", "horizontal", "vertical"):
        raise ValueError(
            f"INPUT.RANDOM_FLIP is {flip!r}; accepted are 'none', 'horizontal', 'vertical'"
        )
    augmentations: list[T.Augmentation] = []
    if flip != "none":
        is_horizontal = flip == "horizontal"
        augmentations.append(T.RandomFlip(horizontal=is_horizontal, vertical=not is_horizontal))
    augmentations.append(T.ResizeScale(min_scale, max_scale, image_size, image_size))
    augmentations.append(T.FixedSizeCrop((image_size, image_size), pad=False))
    return augmentations


def _check(entry: dict, size: tuple[int, int], ids: np.ndarray) -> None:
    """Raise a ValueError unless image, PNG file and entry belong together."""
    path = entry["pan_seg_file_name"]
    if ids.shape != size:
        raise ValueError(
            f"{path} has (height, width) {ids.shape}, but its image {entry['file_name']} {size}"
        )
    listed = {segment["id"] for segment in entry["segments_info"]}
    drawn = _occurring(ids)
    if drawn != listed:
        raise ValueError(
            f"{path}: segments without pixels {sorted(listed - drawn)}, pixels without segments "
            f"{sorted(drawn - listed)}; its ids must be those of segments_info, and {VOID} for void"
        )


def _occurring(ids: np.ndarray) -> set[int]:
    """The ids in (H, W) ``ids`` other than void."""
    flat = ids.ravel()
    # The first pixel of every run along the rows is enough, and far less to sort.
    is_start = np.ones(flat.size, dtype=bool)
    is_start[1:] = flat[1:] != flat[:-1]
    return set(np.unique(flat[is_start]).tolist()) - {VOID}
