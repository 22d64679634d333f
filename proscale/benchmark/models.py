"""Speed and memory of whole models by part, several models in turns.

Neither weights nor data are needed: images and targets are random. A model with random weights
finds nothing, which would make its panoptic results free, so that its class scores are replaced by
such as a trained model gives.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch import Tensor, nn

from proscale.benchmark.latency import TOTAL, Stopwatch, Timing, device_clock, measure_parts
from proscale.benchmark.machine import (
    can_measure_resident,
    in_fresh_process,
    model_bytes,
    peak_allocated,
    peak_resident,
)
from proscale.cost.flops import count_flops
from proscale.cost.parts import BACKBONE, ENCODER_PART, HEAD, NETWORK, TRANSFORMER_DECODER
from proscale.cost.shape_tracing import build_without_weights
from proscale.utils.types import Size

WARMUP = 2
INPUT, RESULTS = "input", "results"
LOSSES, BACKWARD = "losses", "backward"
#: The parts that make up the network, as far as a model has them.
NETWORK_PARTS = (BACKBONE, ENCODER_PART, TRANSFORMER_DECODER, HEAD)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# One query in so many is sure of a class; the others are sure that there is nothing. With 100
# queries that makes 20 candidates for an image of COCO, which has 11 segments on average.
QUERIES_PER_CONFIDENT = 5
CONFIDENT_LOGIT = 10.0
TARGETS_PER_IMAGE = 10


@dataclass(frozen=True)
class ModelSettings:
    """Input and mode of the calls.

    Attributes:
        size: (height, width) of the images, pixels.
        batch: images per call.
        dtype: of :data:`DTYPES`: fp32, or the number format of mixed precision (autocast).
        train: forward and backward pass of a training step with random targets, without the
            optimiser; else inference.
        compiled: backbone, pixel decoder, transformer decoder or head by ``torch.compile``.
    """

    size: Size
    batch: int
    dtype: str = "fp32"
    train: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class ModelTimes:
    """Time and memory of a model's calls.

    Attributes:
        times: by part; :data:`~proscale.cost.parts.NETWORK`, the parts of the network together;
            and :data:`~proscale.benchmark.latency.TOTAL`.
        peak_memory: bytes, the parameters included; None where it cannot be measured.
        multiply_adds: of one image by part of the network and :data:`NETWORK`; empty in training.
    """

    times: dict[str, Timing]
    peak_memory: int | None
    multiply_adds: dict[str, int]


class ModelRun:
    """A model of this project with random weights and its input, to be called again and again.

    Inference has the parts ``input`` (transfer, normalisation, padding), ``backbone``, then
    ``encoder`` (pixel decoder) and ``transformer decoder``, or ``head``, and ``results`` (from
    logits to the results that are configured, in the size of the image); training has ``losses``
    (matching included) and ``backward`` in place of the last.

    Args:
        cfg: the model; its weights are not loaded.
        settings: see :class:`ModelSettings`.

    Raises:
        ValueError: no model can be built from ``cfg``.
    """

    def __init__(self, cfg: CfgNode, settings: ModelSettings):
        # The same weights in every process, and for every setting.
        torch.manual_seed(0)
        self.cfg, self.settings = cfg, settings
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.model = build_model(cfg).train(settings.train)
        head = self.model.sem_seg_head
        self.predictor: nn.Module | None = (
            head.predictor if hasattr(head, "pixel_decoder") else None
        )
        # Inputs have a generator of their own: models draw different numbers of weights.
        generator = torch.Generator().manual_seed(0)
        num_classes = head.num_classes if settings.train else 0
        self.batch = random_images(
            settings.size, settings.batch, generator, num_classes=num_classes
        )
        if self.predictor is not None and not settings.train:
            num_queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
            logits = confident_logits(num_queries, head.num_classes, generator)
            self.class_logits = logits.to(self.device)
        if settings.compiled:
            self._compile()

    def __reduce__(self):
        """Another process builds its own."""
        return type(self), (self.cfg, self.settings)

    def __call__(self, watch: Stopwatch) -> None:
        """Run once, lapping ``watch`` after every part."""
        with self._lapped(watch):
            if not self.settings.train:
                self.results()
                watch.lap(RESULTS)
                return
            # A training step without the optimiser.
            with precision(self.device, self.settings.dtype):
                loss = sum(self.model(self.batch).values())
                watch.lap(LOSSES)
                loss.backward()
                watch.lap(BACKWARD)
            # Not before the step: the gradients are part of the memory it takes.
            self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def results(self) -> list[dict]:
        """Results of the images, by inference."""
        with precision(self.device, self.settings.dtype):
            if self.predictor is None:
                return self.model(self.batch)
            with _predicting(self.predictor, self.class_logits):
                return self.model(self.batch)

    def multiply_adds(self) -> dict[str, int]:
        """See :class:`ModelTimes`."""
        if self.settings.train:
            return {}
        # Of a model of its own, because a compiled one cannot be traced.
        model = build_without_weights(self.cfg)
        count = count_flops(model, self.settings.size).by_module
        found = {BACKBONE: count["backbone"]}
        if self.predictor is None:
            found[HEAD] = count["sem_seg_head"]
        else:
            decoder = count["sem_seg_head.predictor"]
            # The pixel decoder is timed with the pyramid's up-sampling.
            found[ENCODER_PART] = count["sem_seg_head"] - decoder
            found[TRANSFORMER_DECODER] = decoder
        return {**found, NETWORK: sum(found.values())}

    @contextmanager
    def _lapped(self, watch: Stopwatch) -> Iterator[None]:
        """Lap ``watch`` at the seams of the network.

        The pixel decoder, which the head calls by another method than ``forward``, lies between
        the backbone and the predictor.
        """
        backbone, head, predictor = self.model.backbone, self.model.sem_seg_head, self.predictor
        # A pre-hook ends the part before the module, a hook the module's own.
        hooks = [
            backbone.register_forward_pre_hook(watch.hook(INPUT)),
            backbone.register_forward_hook(watch.hook(BACKBONE)),
        ]
        if predictor is None:
            hooks.append(head.register_forward_hook(watch.hook(HEAD)))
        else:
            hooks.append(predictor.register_forward_pre_hook(watch.hook(ENCODER_PART)))
            hooks.append(predictor.register_forward_hook(watch.hook(TRANSFORMER_DECODER)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _compile(self) -> None:
        """Compile between the seams, so that their hooks stay outside."""
        head = self.model.sem_seg_head
        self.model.backbone.forward = torch.compile(self.model.backbone.forward)
        if self.predictor is None:
            head.forward = torch.compile(head.forward)
        else:
            decoder = head.pixel_decoder
            decoder.forward_features = torch.compile(decoder.forward_features)
            head.predictor.forward = torch.compile(head.predictor.forward)


def benchmark_models(
    runs: Mapping[str, ModelRun], *, repeats: int, before: Callable[[str], object] = lambda _: None
) -> dict[str, ModelTimes]:
    """Measure models, by any name; all on the same device.

    Args:
        runs: the models and their inputs.
        repeats: calls that count, of each model.
        before: called with the name before each call, see
            :func:`~proscale.benchmark.latency.measure_parts`.
    """
    clock = device_clock(next(iter(runs.values())).device)
    # Memory first, model by model; then all in turns.
    peaks = {name: _peak_memory(run) for name, run in runs.items()}
    times = measure_parts(runs, repeats=repeats, warmup=WARMUP, clock=clock, before=before)
    return {
        name: ModelTimes(_with_network(times[name]), peaks[name], run.multiply_adds())
        for name, run in runs.items()
    }


def precision(device: torch.device, dtype: str) -> torch.autocast:
    """The context of ``dtype``, of :data:`DTYPES`."""
    mixed = DTYPES[dtype] != torch.float32
    return torch.autocast(device.type, DTYPES[dtype] if mixed else None, enabled=mixed)


def random_images(
    size: Size, count: int, generator: torch.Generator, *, num_classes: int
) -> list[dict]:
    """Samples as a mapper makes them.

    Args:
        size: (height, width) of the images, pixels.
        count: images.
        generator: of the random numbers.
        num_classes: of the targets, ``instances`` and ``sem_seg``; 0 makes none.
    """
    samples: list[dict] = []
    for _ in range(count):
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        samples.append({"image": image, "height": size[0], "width": size[1]})
    if num_classes:
        for sample in samples:
            sample["instances"] = _rectangles(size, num_classes, generator)
            sample["sem_seg"] = torch.randint(num_classes, size, generator=generator)
    return samples


def confident_logits(num_queries: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Class logits ``(Q, K + 1)`` as a trained model gives them: see
    :data:`QUERIES_PER_CONFIDENT`."""
    # The last class is "nothing".
    logits = torch.randn(num_queries, num_classes + 1, generator=generator)
    winners = torch.full((num_queries,), num_classes)
    confident = winners[::QUERIES_PER_CONFIDENT]
    confident.copy_(torch.randint(num_classes, confident.shape, generator=generator))
    logits[torch.arange(num_queries), winners] += CONFIDENT_LOGIT
    return logits


def _rectangles(size: Size, num_classes: int, generator: torch.Generator) -> Instances:
    """:data:`TARGETS_PER_IMAGE` of random place, size and class."""
    # Two corners each, sorted by coordinate, as fractions of the image.
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


@contextmanager
def _predicting(predictor: nn.Module, class_logits: Tensor) -> Iterator[None]:
    """Have the predictor return these class logits for every image."""

    def swap(_module: nn.Module, _inputs: tuple, outputs: dict) -> dict:
        predicted = outputs["pred_logits"]
        return {**outputs, "pred_logits": class_logits.to(predicted).expand_as(predicted)}

    hook = predictor.register_forward_hook(swap)
    try:
        yield
    finally:
        hook.remove()


def _with_network(times: Mapping[str, Timing]) -> dict[str, Timing]:
    # Sample by sample: medians of parts do not add up to the median of their sum.
    parts = [times[part].samples for part in NETWORK_PARTS if part in times]
    network = Timing(tuple(map(sum, zip(*parts, strict=True))))
    others = {part: timing for part, timing in times.items() if part != TOTAL}
    return {**others, NETWORK: network, TOTAL: times[TOTAL]}


def _peak_memory(run: ModelRun) -> int | None:
    if run.device.type == "cuda":
        peak = peak_allocated(lambda: run(Stopwatch(device_clock(run.device))), run.device)
    elif can_measure_resident():
        peak = in_fresh_process(_peak_resident_of_run, run)
    else:
        return None
    # A call's peak is measured beyond the parameters, which are there before.
    return model_bytes(run.model) + peak


def _peak_resident_of_run(run: ModelRun) -> int:
    return peak_resident(lambda: run(Stopwatch(device_clock(run.device))))
