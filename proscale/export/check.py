"""Whether a file computes what the model does: the outputs of both on the same images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image
from torch import Tensor

from proscale.export.network import ExportableNetwork
from proscale.utils.types import Size

Runner = Callable[[Tensor], tuple[Tensor, ...]]

TOLERANCE = 1e-3
# Of the first size; so many that a batch is one.
BATCH = 2


@dataclass(frozen=True)
class Agreement:
    """How far a file's outputs are from the model's.

    Attributes:
        shape: of the images, (B, 3, H, W).
        differences: by output, the greatest absolute one.
    """

    shape: tuple[int, ...]
    differences: dict[str, float]

    @property
    def worst(self) -> float:
        """The greatest of all."""
        return max(self.differences.values())


def check_images(cfg: CfgNode, sizes: Sequence[Size]) -> tuple[list[Tensor], str]:
    """Batches ``(B, 3, H, W)`` uint8 of these sizes, the first one of :data:`BATCH` images; and
    where they are from: the first data set of ``DATASETS.TEST``, or random if it is not there."""
    name = next(iter(cfg.DATASETS.TEST), "")
    try:
        files = [entry["file_name"] for entry in DatasetCatalog.get(name)[:BATCH]]
        pictures = [read_image(file, format=cfg.INPUT.FORMAT) for file in files]
    except (KeyError, OSError):
        name, random = "random pixels", np.random.default_rng(0)
        pictures = [random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(BATCH)]
    batches = [
        torch.stack([_resized(picture, size) for picture in pictures[: 1 if turn else BATCH]])
        for turn, size in enumerate(sizes)
    ]
    return batches, name


def _resized(picture: np.ndarray, size: Size) -> Tensor:
    """``(H, W, 3)`` to ``(3, *size)``."""
    resized = Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


@torch.no_grad()
def compare(network: ExportableNetwork, run: Runner, batches: Sequence[Tensor]) -> list[Agreement]:
    """The agreement on every batch; outputs of other shapes or with nan are infinitely far."""
    found = []
    for images in batches:
        pairs = zip(network.outputs, network(images), run(images), strict=True)
        differences = {name: _difference(ours, theirs) for name, ours, theirs in pairs}
        found.append(Agreement(tuple(images.shape), differences))
    return found


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    return torch.nan_to_num((one - other).abs(), nan=float("inf")).max().item()
