"""Speed and memory of whole models by part, several models in turns.

Neither weights nor data are needed. Since a model with random weights finds nothing, which would
make its panoptic results free, its class scores are replaced by ones as a trained model gives them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from proscale.benchmark.latency import TOTAL, Stopwatch, Timing, device_clock, measure_parts
from proscale.benchmark.memory import (
    can_measure_resident,
    in_fresh_process,
    model_bytes,
    peak_allocated,
    peak_resident,
)
from proscale.benchmark.plain import differences, plain_path
from proscale.cost.flops import count_flops
from proscale.cost.model_inputs import confident_logits, random_images
from proscale.cost.parts import BACKBONE, ENCODER_PART, HEAD, NETWORK, TRANSFORMER_DECODER
from proscale.cost.shape_tracing import build_without_weights
from proscale.utils.malloc import disable_malloc_trim, enable_malloc_trim

WARMUP = 2
INPUT, RESULTS = "input", "results"
LOSSES, BACKWARD = "losses", "backward"
#: The parts that make up the network, as far as a model has them.
NETWORK_PARTS = (BACKBONE, ENCODER_PART, TRANSFORMER_DECODER, HEAD)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelSettings:
    """What models are called with.

    Attributes:
        size: (height, width) of the images, pixels.
        batch: images per call.
        dtype: of :data:`DTYPES`: fp32, or the number format of mixed precision (autocast).
        train: forward and backward pass of a training step with random targets, without the
            optimiser; else inference.
        compiled: backbone, pixel decoder, transformer decoder or head by ``torch.compile``.
        plain: the straightforward way, see :mod:`proscale.benchmark.plain`.
        keep_freed_memory: do not give freed memory back to the system between calls, see
            :mod:`proscale.utils.malloc`.
    """

    size: tuple[int, int]
    batch: int
    dtype: str = "fp32"
    train: bool = False
    compiled: bool = False
    plain: bool = False
    keep_freed_memory: bool = False


@dataclass(frozen=True)
class ModelTimes:
    """What calls of a model take.

    Attributes:
        times: by part; :data:`~proscale.cost.parts.NETWORK`, the parts of the network together;
            and :data:`~proscale.benchmark.latency.TOTAL`.
        peak_memory: bytes, the parameters included; None where it cannot be measured.
        multiply_adds: of one image by part of the network and :data:`NETWORK`; empty in training.
    """

    times: dict[str, Timing]
    peak_memory: int | None
    multiply_adds: dict[str, int]


class Run(Protocol):
    """A model with its input, to be called again and again."""

    settings: ModelSettings
    model: nn.Module
    device: torch.device

    def __call__(self, watch: Stopwatch) -> None:
        """Run once, lapping ``watch`` after every part."""

    def again(self) -> "Callable[[], Run]":
        """What makes the same in another process."""

    def multiply_adds(self) -> dict[str, int]:
        """See :class:`ModelTimes`."""


class ModelRun:
    """A model of this project with random weights.

    Inference has the parts ``input`` (transfer, normalisation, padding), ``backbone``, then
    ``encoder`` (pixel decoder) and ``transformer decoder``, or ``head``, and ``results`` (from
    logits to what the configuration asks for, in the size of the image); training has ``losses``
    (matching included) and ``backward`` in place of the last.

    Args:
        cfg: the model; its weights are not loaded.
        settings: see :class:`ModelSettings`.

    Raises:
        ValueError: no model can be built from ``cfg``.
    """

    def __init__(self, cfg: CfgNode, settings: ModelSettings):
        torch.manual_seed(0)
        self.cfg, self.settings = cfg, settings
        self.model = build_model(cfg).train(settings.train)
        self.device = torch.device(cfg.MODEL.DEVICE)
        head = self.model.sem_seg_head
        self.predictor: nn.Module | None = (
            head.predictor if hasattr(head, "pixel_decoder") else None
        )
        generator = torch.Generator().manual_seed(0)
        self.batch = random_images(
            settings.size,
            settings.batch,
            generator,
            num_classes=head.num_classes if settings.train else 0,
        )
        if self.predictor is not None and not settings.train:
            num_queries = cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
            logits = confident_logits(num_queries, head.num_classes, generator)
            self.class_logits = logits.to(self.device)
        if settings.compiled:
            self._compile()

    def __call__(self, watch: Stopwatch) -> None:
        """Run once, lapping ``watch`` after every part."""
        with (
            _lapped(self.model, self.predictor, watch),
            self._path(),
            precision(self.device, self.settings.dtype),
        ):
            if self.settings.train:
                self._step(watch)
            else:
                self._infer()
                watch.lap(RESULTS)

    def results(self) -> list[dict]:
        """Results of the images, by inference."""
        with self._path(), precision(self.device, self.settings.dtype):
            return self._infer()

    def again(self) -> "Callable[[], ModelRun]":
        """What makes the same in another process."""
        return partial(ModelRun, self.cfg, self.settings)

    def multiply_adds(self) -> dict[str, int]:
        """See :class:`ModelTimes`."""
        if self.settings.train:
            return {}
        # A compiled model cannot be traced.
        model = build_without_weights(self.cfg)
        count = count_flops(model, self.settings.size).by_module
        head = "sem_seg_head"
        if self.predictor is None:
            found = {BACKBONE: count["backbone"], HEAD: count[head]}
        else:
            decoder = count[f"{head}.predictor"]
            # The pixel decoder is timed with the pyramid's up-sampling.
            found = {
                BACKBONE: count["backbone"],
                ENCODER_PART: count[head] - decoder,
                TRANSFORMER_DECODER: decoder,
            }
        return {**found, NETWORK: sum(found.values())}

    @torch.no_grad()
    def _infer(self) -> list[dict]:
        if self.predictor is None:
            return self.model(self.batch)
        with _predicting(self.predictor, self.class_logits):
            return self.model(self.batch)

    def _step(self, watch: Stopwatch) -> None:
        loss = sum(self.model(self.batch).values())
        watch.lap(LOSSES)
        loss.backward()
        watch.lap(BACKWARD)
        # Not before the step: the gradients are part of the memory it takes.
        self.model.zero_grad(set_to_none=True)

    def _path(self):
        return plain_path(self.model) if self.settings.plain else nullcontext()

    def _compile(self) -> None:
        """Compile what lies between the seams, not the hooks that watch them."""
        head = self.model.sem_seg_head
        self.model.backbone.forward = torch.compile(self.model.backbone.forward)
        if self.predictor is None:
            head.forward = torch.compile(head.forward)
        else:
            decoder = head.pixel_decoder
            decoder.forward_features = torch.compile(decoder.forward_features)
            self.predictor.forward = torch.compile(self.predictor.forward)


def benchmark_models(runs: Mapping[str, Run], *, repeats: int) -> dict[str, ModelTimes]:
    """Measure models, by any name; all on the same device.

    Args:
        runs: the models and their inputs.
        repeats: calls that count, of each model.
    """
    device = next(iter(runs.values())).device
    peaks = {name: _peak_memory(run) for name, run in runs.items()}
    times = measure_parts(
        runs,
        repeats=repeats,
        warmup=WARMUP,
        clock=device_clock(device),
        before=_FreedMemory(runs).prepare,
    )
    return {
        name: ModelTimes(
            times=_with_network(times[name]),
            peak_memory=peaks[name],
            multiply_adds=run.multiply_adds(),
        )
        for name, run in runs.items()
    }


class _FreedMemory:
    """Has freed memory kept or given back, as the run to come wants it."""

    def __init__(self, runs: Mapping[str, Run]):
        self.runs = runs
        self.is_kept = False

    def prepare(self, name: str) -> None:
        run = self.runs[name]
        if run.settings.keep_freed_memory == self.is_kept:
            return
        self.is_kept = not self.is_kept
        (disable_malloc_trim if self.is_kept else enable_malloc_trim)()
        # Not counted: a process comes once, not at every call, to the memory that it holds on to.
        run(Stopwatch(device_clock(run.device)))


def compare_with_plain(run: ModelRun) -> dict[str, float]:
    """How far the results are from those of the plain path with the same weights, by kind of
    result: see :func:`proscale.benchmark.plain.differences`; the largest of all images."""
    plain = ModelRun(run.cfg, replace(run.settings, plain=True, compiled=False))
    found = [
        differences(fast, slow) for fast, slow in zip(run.results(), plain.results(), strict=True)
    ]
    return {kind: max(one[kind] for one in found) for kind in found[0]}


def _with_network(times: Mapping[str, Timing]) -> dict[str, Timing]:
    parts = [times[part].samples for part in NETWORK_PARTS if part in times]
    network = Timing(tuple(map(sum, zip(*parts, strict=True))))
    others = {part: timing for part, timing in times.items() if part != TOTAL}
    return {**others, NETWORK: network, TOTAL: times[TOTAL]}


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


@contextmanager
def _lapped(model: nn.Module, predictor: nn.Module | None, watch: Stopwatch) -> Iterator[None]:
    """Lap ``watch`` at the seams of the network.

    The pixel decoder, which the head calls by another method than ``forward``, is what lies between
    the backbone and the predictor.
    """
    hooks = [
        model.backbone.register_forward_pre_hook(lap_after(watch, INPUT)),
        model.backbone.register_forward_hook(lap_after(watch, BACKBONE)),
    ]
    if predictor is None:
        hooks.append(model.sem_seg_head.register_forward_hook(lap_after(watch, HEAD)))
    else:
        hooks.append(predictor.register_forward_pre_hook(lap_after(watch, ENCODER_PART)))
        hooks.append(predictor.register_forward_hook(lap_after(watch, TRANSFORMER_DECODER)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def precision(device: torch.device, dtype: str) -> torch.autocast:
    """The context of ``dtype``, of :data:`DTYPES`."""
    mixed = DTYPES[dtype] != torch.float32
    return torch.autocast(device.type, DTYPES[dtype] if mixed else None, enabled=mixed)


def lap_after(watch: Stopwatch, part: str) -> Callable[..., None]:
    """A hook that ascribes the time since the last lap to ``part``."""

    def hook(*_: object) -> None:
        watch.lap(part)

    return hook


def _peak_memory(run: Run) -> int | None:
    device = run.device
    if device.type == "cuda":
        peak = peak_allocated(lambda: run(Stopwatch(device_clock(device))), device)
    elif can_measure_resident():
        peak = in_fresh_process(_peak_resident_of_model, run.again())
    else:
        return None
    return model_bytes(run.model) + peak


def _peak_resident_of_model(make: Callable[[], Run]) -> int:
    run = make()
    return peak_resident(lambda: run(Stopwatch(device_clock(run.device))))
