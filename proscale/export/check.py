"""The check of a file: its outputs, time and quality beside those of the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling.postprocessing import sem_seg_postprocess
from PIL import Image
from torch import Tensor, nn

from proscale.benchmark.latency import Timing, measure
from proscale.data.formats.image_file import read_image
from proscale.engine.trainer import Trainer
from proscale.errors import DataError
from proscale.evaluation import build_evaluator
from proscale.export.network import ExportableNetwork
from proscale.modeling import Detector, MaskFormer, PoseEstimator, with_sliding_window
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
    quality: Mapping[str, float]

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
        pictures = [read_image(file, cfg.INPUT.FORMAT) for file in files]
    except (KeyError, OSError, DataError):
        name, random = "random pixels", np.random.default_rng(0)
        pictures = [random.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(BATCH)]
    # The first batch has several images, the others one.
    batches: list[Tensor] = []
    for size in sizes:
        resized = [
            np.array(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR))
            for picture in (pictures[:1] if batches else pictures)
        ]
        batches.append(torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous())
    return batches, name


def check_file(
    file: Path,
    run: Runner,
    network: ExportableNetwork,
    batches: Sequence[Tensor],
    *,
    repeats: int,
    evaluate: Callable[[Runner], Mapping[str, float]] | None = None,
) -> CheckedFile:
    """Run ``file`` by ``run`` beside the network that it was made from.

    Args:
        batches: images ``(B, 3, H, W)`` uint8; the first one's first image is timed.
        repeats: calls of each that are timed, in turns.
        evaluate: the quality of ``run``.
    """
    deviations = compare(network, run, batches)
    # In turns, so that other work on the machine touches both alike.
    image = batches[0][:1]
    calls = {"model": lambda: network(image), "file": lambda: run(image)}
    with torch.no_grad():
        times = measure(calls, repeats=repeats, warmup=1)
    quality = evaluate(run) if evaluate is not None else {}
    return CheckedFile(file.stat().st_size, deviations, times, quality)


@torch.no_grad()
def compare(network: ExportableNetwork, run: Runner, batches: Sequence[Tensor]) -> list[Deviation]:
    """The deviation on every batch; outputs of other shapes or with nan are infinitely far."""
    found = []
    for images in batches:
        pairs = zip(network.outputs, network(images), run(images), strict=True)
        # Neither another shape nor nan may pass for a small difference.
        differences = {
            name: (ours - theirs).abs().nan_to_num(nan=float("inf")).max().item()
            if ours.shape == theirs.shape
            else float("inf")
            for name, ours, theirs in pairs
        }
        found.append(Deviation(tuple(images.shape), differences))
    return found


class ExportedModel(nn.Module):
    """Computes outputs by a file, which ``run`` runs, and makes the model's results from them."""

    def __init__(self, model: nn.Module, network: ExportableNetwork, run: Runner):
        super().__init__()
        self.model, self.network, self.run = model, network, run

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """As the model's own in evaluation; an image at a time."""
        found = []
        for sample in batched_inputs:
            # Outputs by the file, a batch of one.
            images = sample["image"][None]
            size = (images.shape[2], images.shape[3])
            if isinstance(self.model, PoseEstimator):
                found += self.model.results(self._heatmaps(images), [sample])
                continue
            outputs: list[Tensor] = [output[0] for output in self.run(images)]
            # Results by the model, at the size of the original image.
            height, width = sample.get("height", size[0]), sample.get("width", size[1])
            if isinstance(self.model, MaskFormer):
                sizes = {"padded_size": self.network.padded(size), "image_size": size}
                found.append(self.model.results(*outputs, **sizes, sample=sample))
            elif isinstance(self.model, Detector):
                found.append({"instances": self.model.results(*outputs, (height, width))})
            else:
                found.append({"sem_seg": sem_seg_postprocess(*outputs, size, height, width)})
        return found

    def _heatmaps(self, images: Tensor) -> Tensor:
        """Heatmaps of crops ``(B, 3, H, W)`` by the file, with the flip test if it is on."""
        assert isinstance(self.model, PoseEstimator)
        (plain,) = self.run(images)
        if not self.model.flip_indices:
            return plain
        (mirrored,) = self.run(images.flip(-1))
        return self.model.average(plain, mirrored)


def evaluate(
    cfg: CfgNode, model: nn.Module, network: ExportableNetwork, run: Runner
) -> dict[str, float]:
    """The main metrics of a file on the first data set of ``DATASETS.TEST``, percent."""
    # As ``Trainer.test`` does, with the file in place of the model's network.
    name = cfg.DATASETS.TEST[0]
    results = inference_on_dataset(
        with_sliding_window(cfg, ExportedModel(model, network, run).eval()),
        Trainer.build_test_loader(cfg, name),
        build_evaluator(cfg, name),
    )
    metrics = {"panoptic_seg": "PQ", "segm": "AP", "sem_seg": "mIoU", "keypoints": "PCK@0.1"}
    if isinstance(model, Detector):
        metrics["bbox"] = "AP"
    return {metric: results[kind][metric] for kind, metric in metrics.items() if kind in results}
