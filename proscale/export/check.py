"""The check of a file: its outputs, time and quality beside those of the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image
from torch import Tensor

from proscale.benchmark.latency import Timing, measure
from proscale.export.network import ExportableNetwork
from proscale.utils.types import Size

Runner = Callable[[Tensor], tuple[Tensor, ...]]

TOLERANCE = 1e-3
BATCH = 2
"""Images of the first batch, so that a batch of several is checked, too."""


@dataclass(frozen=True)
class Deviation:
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


@dataclass(frozen=True)
class CheckedFile:
    """A file that was run beside the model.

    Attributes:
        size: bytes.
        deviations: from the model, by batch.
        times: of ``model`` and ``file`` for an image of the first size.
        quality: percent, by metric; empty where it was not evaluated.
    """

    size: int
    deviations: Sequence[Deviation]
    times: Mapping[str, Timing]
    quality: Mapping[str, float] = field(default_factory=dict)

    def passes(self, tolerance: float) -> bool:
        """Whether no output differs by more than ``tolerance``."""
        return all(deviation.worst <= tolerance for deviation in self.deviations)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "bytes": self.size,
            "differences": [{"shape": list(d.shape), **d.differences} for d in self.deviations],
            "seconds": {name: timing.as_dict() for name, timing in self.times.items()},
            "quality": dict(self.quality),
        }


def check_images(cfg: CfgNode, sizes: Sequence[Size]) -> tuple[list[Tensor], str]:
    """Batches ``(B, 3, H, W)`` uint8 of these sizes, the first one of :data:`BATCH` images; and
    their source: the first data set of ``DATASETS.TEST``, or random pixels if it is not there."""
    # Real images where there are any: random pixels make masks that say little.
    name = next(iter(cfg.DATASETS.TEST), "")
    try:
        files = [entry["file_name"] for entry in DatasetCatalog.get(name)[:BATCH]]
        pictures = [read_image(file, format=cfg.INPUT.FORMAT) for file in files]
    except (KeyError, OSError):
        name, random = "random pixels", np.random.default_rng(0)
        pictures = [random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(BATCH)]
    # The first batch has several images, the others one.
    batches = [
        torch.stack([_resized(picture, size) for picture in pictures[: 1 if turn else BATCH]])
        for turn, size in enumerate(sizes)
    ]
    return batches, name


def _resized(picture: np.ndarray, size: Size) -> Tensor:
    """``(H, W, 3)`` to ``(3, *size)``."""
    resized = Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def check_file(
    file: Path,
    run: Runner,
    network: ExportableNetwork,
    batches: Sequence[Tensor],
    *,
    repeats: int,
    evaluate: Callable[[Runner], Mapping[str, float]] | None = None,
) -> CheckedFile:
    """Run a file beside the network that it was made from.

    Args:
        file: for its size.
        run: runs the file.
        network: of the model.
        batches: images ``(B, 3, H, W)`` uint8; the first one's first image is timed.
        repeats: calls of each that are timed, in turns.
        evaluate: the quality of ``run``.
    """
    deviations = compare(network, run, batches)
    # In turns, so that other work on the machine touches both alike.
    image = batches[0][:1]
    with torch.no_grad():
        times = measure(
            {"model": lambda: network(image), "file": lambda: run(image)}, repeats=repeats, warmup=1
        )
    quality = evaluate(run) if evaluate is not None else {}
    return CheckedFile(file.stat().st_size, deviations, times, quality)


@torch.no_grad()
def compare(network: ExportableNetwork, run: Runner, batches: Sequence[Tensor]) -> list[Deviation]:
    """The deviation on every batch; outputs of other shapes or with nan are infinitely far."""
    found = []
    for images in batches:
        pairs = zip(network.outputs, network(images), run(images), strict=True)
        differences = {name: _difference(ours, theirs) for name, ours, theirs in pairs}
        found.append(Deviation(tuple(images.shape), differences))
    return found


def _difference(one: Tensor, other: Tensor) -> float:
    # Neither may pass for a small difference.
    if one.shape != other.shape:
        return float("inf")
    return torch.nan_to_num((one - other).abs(), nan=float("inf")).max().item()
