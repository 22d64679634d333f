"""Speed and memory of whole models by part, several models in turns.

Neither weights nor data are needed. Since a model with random weights finds nothing, which would
make its panoptic results free, its class scores are replaced by ones as a trained model gives them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch import Tensor, nn

from proscale.analysis.flops import ENCODER, count_flops
from proscale.analysis.latency import Stopwatch, Timing, device_clock, measure_parts
from proscale.analysis.memory import (
    can_measure_resident,
    in_fresh_process,
    model_bytes,
    peak_allocated,
    peak_resident,
)

WARMUP = 2
INPUT, BACKBONE, PIXEL_DECODER = "input", "backbone", "pixel decoder"
TRANSFORMER_DECODER = "transformer decoder"
RESULTS = "results"
LOSSES, BACKWARD = "losses", "backward"
#: The parts that make up the network, and the modules in which their multiply-adds are counted.
NETWORK = {
    BACKBONE: "backbone",
    PIXEL_DECODER: ENCODER,
    TRANSFORMER_DECODER: "sem_seg_head.predictor",
}
# One query in so many is sure of a class; the others are sure that there is nothing. With 100
# queries that makes 20 candidates for an image of COCO, which has 11 segments on average.
QUERIES_PER_CONFIDENT = 5
CONFIDENT_LOGIT = 10.0
TARGETS_PER_IMAGE = 10


@dataclass(frozen=True)
class ModelSettings:
    """What models are called with.

    Attributes:
        size: (height, width) of the images, pixels.
        batch: images per call.
        dtype: ``float32``, or the number format of mixed precision (autocast), e.g. ``bfloat16``.
        train: forward and backward pass of a training step with :data:`TARGETS_PER_IMAGE` random
            targets, without the optimiser; else inference.
    """

    size: tuple[int, int]
    batch: int
    dtype: str
    train: bool


@dataclass(frozen=True)
class ModelCost:
    """What one call of a model costs.

    Attributes:
        times: by part, and :data:`~proscale.analysis.latency.TOTAL`.
        peak_memory: bytes, the parameters included; None where it cannot be measured.
        multiply_adds: of one image by part of the network; empty when training.
    """

    times: dict[str, Timing]
    peak_memory: int | None
    multiply_adds: dict[str, int]


class ModelRun:
    """A model with random weights and its input, to be called again and again.

    Inference has the parts ``input`` (transfer, normalisation, padding), ``backbone``, ``pixel
    decoder``, ``transformer decoder`` and ``results`` (from mask logits to what the configuration
    asks for, in the size of the image); training has ``losses`` (matching included) and
    ``backward`` in place of the last.

    Args:
        cfg: the model; its weights are not loaded.
        settings: see :class:`ModelSettings`.

    Raises:
        ValueError: ``MODEL.META_ARCHITECTURE`` is another one than MaskFormer, or no model can be
            built from ``cfg``.
    """

    def __init__(self, cfg: CfgNode, settings: ModelSettings):
        if cfg.MODEL.META_ARCHITECTURE != "MaskFormer":
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: accepts MaskFormer, "
                "whose parts can be told apart"
            )
        torch.manual_seed(0)
        self.cfg, self.settings = cfg, settings
        self.model = build_model(cfg).train(settings.train)
        generator = torch.Generator().manual_seed(0)
        self.batch = [_image(settings.size, generator) for _ in range(settings.batch)]
        head = self.model.sem_seg_head
        if settings.train:
            for sample in self.batch:
                sample["instances"] = _targets(settings.size, head.num_classes, generator)
        else:
            num_queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
            logits = confident_logits(num_queries, head.num_classes, generator)
            self.class_logits = logits.to(self.model.device)

    def __call__(self, watch: Stopwatch) -> None:
        """Run once, lapping ``watch`` after every part."""
        with _lapped(self.model, watch):
            if self.settings.train:
                self._step(watch)
            else:
                self._infer(watch)

    @torch.no_grad()
    def _infer(self, watch: Stopwatch) -> None:
        predictor = self.model.sem_seg_head.predictor
        with _predicting(predictor, self.class_logits), self._precision():
            self.model(self.batch)
        watch.lap(RESULTS)

    def _step(self, watch: Stopwatch) -> None:
        with self._precision():
            loss = sum(self.model(self.batch).values())
        watch.lap(LOSSES)
        loss.backward()
        watch.lap(BACKWARD)
        # Not before the step: the gradients are part of the memory it takes.
        self.model.zero_grad(set_to_none=True)

    def _precision(self) -> torch.autocast:
        dtype = getattr(torch, self.settings.dtype)
        mixed = dtype != torch.float32
        return torch.autocast(self.model.device.type, dtype if mixed else None, enabled=mixed)


def benchmark_models(runs: Mapping[str, ModelRun], *, repeats: int) -> dict[str, ModelCost]:
    """Measure models, by any name; all on the same device.

    Args:
        runs: the models and their inputs.
        repeats: calls that count, of each model.
    """
    device = next(iter(runs.values())).model.device
    peaks = {name: _peak_memory(run) for name, run in runs.items()}
    times = measure_parts(runs, repeats=repeats, warmup=WARMUP, clock=device_clock(device))
    return {
        name: ModelCost(
            times=times[name],
            peak_memory=peaks[name],
            multiply_adds={} if run.settings.train else _multiply_adds(run),
        )
        for name, run in runs.items()
    }


def _image(size: tuple[int, int], generator: torch.Generator) -> dict:
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": size[0], "width": size[1]}


def _targets(size: tuple[int, int], num_classes: int, generator: torch.Generator) -> Instances:
    """Rectangles of random place, size and class."""
    masks = torch.zeros(TARGETS_PER_IMAGE, *size, dtype=torch.bool)
    corners = torch.rand(TARGETS_PER_IMAGE, 2, 2, generator=generator).sort(dim=-1).values
    for mask, (rows, columns) in zip(masks, corners.tolist(), strict=True):
        top, bottom = (int(place * size[0]) for place in rows)
        left, right = (int(place * size[1]) for place in columns)
        mask[top : bottom + 1, left : right + 1] = True
    instances = Instances(size)
    instances.gt_classes = torch.randint(num_classes, (TARGETS_PER_IMAGE,), generator=generator)
    instances.gt_masks = BitMasks(masks)
    return instances


def confident_logits(num_queries: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Class logits ``(Q, K + 1)`` as a trained model gives them: see
    :data:`QUERIES_PER_CONFIDENT`."""
    logits = torch.randn(num_queries, num_classes + 1, generator=generator)
    winners = torch.full((num_queries,), num_classes)
    confident = winners[::QUERIES_PER_CONFIDENT]
    confident.copy_(torch.randint(num_classes, confident.shape, generator=generator))
    logits[torch.arange(num_queries), winners] += CONFIDENT_LOGIT
    return logits


@contextmanager
def _predicting(predictor: nn.Module, class_logits: Tensor) -> Iterator[None]:
    """Have the predictor return these class logits for every image."""

    def replace(_module: nn.Module, _inputs: tuple, outputs: dict) -> dict:
        predicted = outputs["pred_logits"]
        return {**outputs, "pred_logits": class_logits.to(predicted).expand_as(predicted)}

    hook = predictor.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _lapped(model: nn.Module, watch: Stopwatch) -> Iterator[None]:
    """Lap ``watch`` at the seams of the network.

    The pixel decoder, which the head calls by another method than ``forward``, is what lies between
    the backbone and the predictor.
    """

    def lap(part: str):
        def hook(*_: object) -> None:
            watch.lap(part)

        return hook

    predictor = model.sem_seg_head.predictor
    hooks = (
        model.backbone.register_forward_pre_hook(lap(INPUT)),
        model.backbone.register_forward_hook(lap(BACKBONE)),
        predictor.register_forward_pre_hook(lap(PIXEL_DECODER)),
        predictor.register_forward_hook(lap(TRANSFORMER_DECODER)),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _multiply_adds(run: ModelRun) -> dict[str, int]:
    step = max(run.model.size_divisibility, 1)
    height, width = (-(-length // step) * step for length in run.settings.size)
    count = count_flops(run.model, (height, width))
    return {part: count.by_module[module] for part, module in NETWORK.items()}


def _peak_memory(run: ModelRun) -> int | None:
    device = run.model.device
    if device.type == "cuda":
        peak = peak_allocated(lambda: run(Stopwatch(device_clock(device))), device)
    elif can_measure_resident():
        peak = in_fresh_process(_peak_resident_of_model, run.cfg, run.settings)
    else:
        return None
    return model_bytes(run.model) + peak


def _peak_resident_of_model(cfg: CfgNode, settings: ModelSettings) -> int:
    run = ModelRun(cfg, settings)
    return peak_resident(lambda: run(Stopwatch(device_clock(run.model.device))))
