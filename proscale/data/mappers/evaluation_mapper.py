"""Images as they are evaluated."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from proscale.data.mappers.augmentation import ResizeShortestEdge
from proscale.data.mappers.entry_image import read_entry_image


class EvaluationMapper:
    """Maps an entry of a data set to its image alone: evaluators read the truth themselves.

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
        return {
            "resize": ResizeShortestEdge(node.MIN_SIZE_TEST, node.MAX_SIZE_TEST, "choice"),
            "image_format": node.FORMAT,
        }

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            entry: in Detectron2's format. It is not changed.

        Returns:
            what the entry has but its truth, ``height`` and ``width`` of the file, and ``image``
            (3, H, W) uint8.

        Raises:
            FileNotFoundError: the image is not there.
            DataError: the image cannot be read, or has another size than stated; names the file.
        """
        image = read_entry_image(entry, self.image_format)
        sample = {key: value for key, value in entry.items() if key not in _TRUTH}
        sample["height"], sample["width"] = image.shape[:2]
        return {**sample, "image": self.resized(image)}

    def resized(self, image: np.ndarray) -> torch.Tensor:
        """An image (H, W, 3) uint8 as the model sees it: (3, H, W) uint8."""
        aug_input = T.AugInput(image)
        self.augmentations(aug_input)
        return torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))


_TRUTH = ("annotations", "sem_seg_file_name")
