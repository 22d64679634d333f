"""Speed and memory of whole models by part, several models in turns, and tables of them.

Neither weights nor data are needed: images and targets are random. A model with random weights
finds nothing, which would make its panoptic results free, so that its class scores are replaced by
such as a trained model gives.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

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
from proscale.cost.model_cost import BACKBONE, ENCODER_PART, HEAD, NETWORK, TRANSFORMER_DECODER
from proscale.cost.shape_tracing import build_without_weights
from proscale.cost.tables import markdown_table
from proscale.data.mappers import PoseMapper
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


class _Seam(NamedTuple):
    """Where a part of a call ends: before a module, or after it."""

    part: str
    module: str  # its name in the model
    is_after: bool = True


_BEGIN = (_Seam(INPUT, "backbone", is_after=False), _Seam(BACKBONE, "backbone"))
# The head of a MaskFormer calls the pixel decoder by another method than ``forward``: its part lies
# between the backbone and the predictor. That of a detector begins with projections of the levels.
_SEAMS = {
    "MaskFormer": (
        *_BEGIN,
        _Seam(ENCODER_PART, "sem_seg_head.predictor", is_after=False),
        _Seam(TRANSFORMER_DECODER, "sem_seg_head.predictor"),
    ),
    "SemanticSegmentor": (*_BEGIN, _Seam(HEAD, "sem_seg_head")),
    "Detector": (
        *_BEGIN,
        _Seam(ENCODER_PART, "detection_head.transformer.encoder"),
        _Seam(TRANSFORMER_DECODER, "detection_head"),
    ),
    "PoseEstimator": (*_BEGIN, _Seam(HEAD, "pose_head")),
}
# Methods that ``torch.compile`` compiles: between the seams, so that their hooks stay outside.
_COMPILED = {
    "MaskFormer": (
        ("sem_seg_head.pixel_decoder", "decode"),
        ("sem_seg_head.predictor", "forward"),
    ),
    "SemanticSegmentor": (("sem_seg_head", "forward"),),
    "Detector": (("detection_head.transformer.encoder", "forward"),),
    "PoseEstimator": (("pose_head", "forward"),),
}


@dataclass(frozen=True)
class ModelSettings:
    """Input and mode of the calls."""

    #: (height, width) of the images, pixels; of a pose estimator, whose crops have the size of
    #: MODEL.POSE.INPUT_SIZE, those that persons are cut out of
    size: Size
    batch: int  #: images per call
    dtype: str = "fp32"  #: of :data:`DTYPES`; all but fp32 are mixed precision (autocast)
    #: Forward and backward pass of a training step with random targets, without the optimiser.
    train: bool = False
    #: Backbone, pixel decoder, transformer decoder or head by ``torch.compile``.
    compiled: bool = False


@dataclass(frozen=True)
class ModelTimes:
    """Time and memory of a model's calls."""

    times: dict[str, Timing]  #: by part; ``NETWORK``, its parts together; and ``TOTAL``
    peak_memory: int | None  #: bytes, parameters included; None where it cannot be measured
    multiply_adds: dict[str, int]  #: of one image, by part and ``NETWORK``; empty in training


class ModelRun:
    """A model of this project with random weights and its input, to be called again and again.

    Inference has the parts ``input`` (transfer, normalisation, padding), ``backbone``, then
    ``encoder`` (pixel decoder, or a detector's projections and encoder) and ``transformer
    decoder``, or ``head``, and ``results`` (from logits to the results that are configured, in the
    size of the image); training has ``losses`` (matching included) and ``backward`` in place of the
    last.

    Raises:
        ValueError: no model can be built from ``cfg``, whose weights are not loaded.
    """

    def __init__(self, cfg: CfgNode, settings: ModelSettings):
        # The same weights in every process, and for every setting.
        torch.manual_seed(0)
        self.cfg, self.settings = cfg, settings
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.model = build_model(cfg).train(settings.train)
        kind = cfg.MODEL.META_ARCHITECTURE
        self.seams = _SEAMS[kind]
        self.predictor = self.model.sem_seg_head.predictor if kind == "MaskFormer" else None
        # Inputs have a generator of their own: models draw different numbers of weights.
        generator = torch.Generator().manual_seed(0)
        num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if kind == "PoseEstimator":
            self.batch = _random_persons(cfg, settings, generator)
        else:
            self.batch = _random_images(settings, num_classes if settings.train else 0, generator)
        if self.predictor is not None and not settings.train:
            # Those that are chosen from the tokens, too.
            num_queries = self.predictor.test_queries
            logits = confident_logits(num_queries, num_classes, generator)
            self.class_logits = logits.to(self.device)
        if settings.compiled:
            for name, method in (("backbone", "forward"), *_COMPILED[kind]):
                module = self.model.get_submodule(name)
                setattr(module, method, torch.compile(getattr(module, method)))

    def __reduce__(self):
        """Another process builds its own."""
        return type(self), (self.cfg, self.settings)

    def __call__(self, watch: Stopwatch) -> None:
        """Run once, lapping ``watch`` after every part."""
        with ExitStack() as stack:
            for seam in self.seams:
                module, hook = self.model.get_submodule(seam.module), watch.hook(seam.part)
                # A pre-hook ends the part before the module, a hook the module's own.
                register = (
                    module.register_forward_hook
                    if seam.is_after
                    else module.register_forward_pre_hook
                )
                stack.enter_context(register(hook))
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

        def make_confident(_module: nn.Module, _inputs: tuple, outputs: dict) -> dict:
            predicted = outputs["pred_logits"]
            # A small image has fewer tokens than queries that are chosen from them.
            logits = self.class_logits[: predicted.shape[1]].to(predicted)
            return {**outputs, "pred_logits": logits.expand_as(predicted)}

        with precision(self.device, self.settings.dtype), ExitStack() as stack:
            if self.predictor is not None:
                stack.enter_context(self.predictor.register_forward_hook(make_confident))
            return self.model(self.batch)

    def resize(self, size: Size) -> None:
        """Take images of another size, (height, width) pixels, from now on, in inference."""
        if size != self.settings.size:
            self.settings = replace(self.settings, size=size)
            self.batch = _random_images(self.settings, 0, torch.Generator().manual_seed(0))

    def multiply_adds(self) -> dict[str, int]:
        """See :class:`ModelTimes`."""
        if self.settings.train:
            return {}
        height, width = self.batch[0]["image"].shape[-2:]
        return multiply_adds_by_part(self.cfg, (height, width))


def multiply_adds_by_part(cfg: CfgNode, size: Size) -> dict[str, int]:
    """Of a model's inference for an image, or a crop of a person, of ``size`` (height, width)
    pixels: :data:`NETWORK_PARTS` as far as it has them, and ``NETWORK``."""
    # Of a model of its own, because a compiled one cannot be traced.
    count = count_flops(build_without_weights(cfg), size).by_module
    found = {BACKBONE: count["backbone"]}
    match cfg.MODEL.META_ARCHITECTURE:
        case "MaskFormer":
            decoder = count["sem_seg_head.predictor"]
            # The pixel decoder is timed with the pyramid's up-sampling.
            found[ENCODER_PART] = count["sem_seg_head"] - decoder
            found[TRANSFORMER_DECODER] = decoder
        case "Detector":
            names = ("input_proj", "transformer.encoder")
            found[ENCODER_PART] = sum(count[f"detection_head.{name}"] for name in names)
            found[TRANSFORMER_DECODER] = count["detection_head"] - found[ENCODER_PART]
        case "PoseEstimator":
            # The flip test sees every crop twice.
            passes = 2 if cfg.MODEL.POSE.FLIP_TEST else 1
            found = {BACKBONE: passes * count["backbone"], HEAD: passes * count["pose_head"]}
        case _:
            found[HEAD] = count["sem_seg_head"]
    return {**found, NETWORK: sum(found.values())}


def benchmark_models(
    runs: Mapping[str, ModelRun], *, repeats: int, before: Callable[[str], object] = lambda _: None
) -> dict[str, ModelTimes]:
    """Measure models, by any name; all on the same device.

    ``repeats`` and ``before`` are those of :func:`~proscale.benchmark.latency.measure_parts`.
    """
    device = next(iter(runs.values())).device
    clock = device_clock(device)
    # Memory first, model by model; then all in turns.
    peaks: dict[str, int | None] = dict.fromkeys(runs)
    for name, run in runs.items():
        if device.type == "cuda":
            peak = peak_allocated(partial(run, Stopwatch(clock)), device)
        elif can_measure_resident():
            peak = in_fresh_process(peak_resident, partial(run, Stopwatch(clock)))
        else:
            continue
        # A call's peak is measured beyond the parameters, which are there before.
        peaks[name] = model_bytes(run.model) + peak
    times = measure_parts(runs, repeats=repeats, warmup=WARMUP, clock=clock, before=before)
    results = {}
    for name, run in runs.items():
        total = times[name].pop(TOTAL)
        # Sample by sample: medians of parts do not add up to the median of their sum.
        parts = [times[name][part].samples for part in NETWORK_PARTS if part in times[name]]
        network = Timing(tuple(map(sum, zip(*parts, strict=True))))
        by_part = {**times[name], NETWORK: network, TOTAL: total}
        results[name] = ModelTimes(by_part, peaks[name], run.multiply_adds())
    return results


def precision(device: torch.device, dtype: str) -> torch.autocast:
    """The context of ``dtype``, of :data:`DTYPES`."""
    mixed = DTYPES[dtype] != torch.float32
    return torch.autocast(device.type, DTYPES[dtype] if mixed else None, enabled=mixed)


def _random_images(
    settings: ModelSettings, num_classes: int, generator: torch.Generator
) -> list[dict]:
    """Samples as a mapper makes them, with targets of ``num_classes`` (0 makes none)."""
    size, count = settings.size, TARGETS_PER_IMAGE
    samples: list[dict] = []
    for _ in range(settings.batch):
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        samples.append({"image": image, "height": size[0], "width": size[1]})
    for sample in samples if num_classes else ():
        # Rectangles: two corners each, sorted by coordinate, as fractions of the image.
        masks = torch.zeros(count, *size, dtype=torch.bool)
        corners = torch.rand(count, 2, 2, generator=generator).sort(dim=-1).values
        for mask, (rows, columns) in zip(masks, corners.tolist(), strict=True):
            top, bottom = (int(place * size[0]) for place in rows)
            left, right = (int(place * size[1]) for place in columns)
            mask[top : bottom + 1, left : right + 1] = True
        classes = torch.randint(num_classes, (count,), generator=generator)
        objects = Instances(size, gt_classes=classes, gt_masks=BitMasks(masks))
        objects.gt_boxes = objects.gt_masks.get_bounding_boxes()
        sample["instances"] = objects
        sample["sem_seg"] = torch.randint(num_classes, size, generator=generator)
    return samples


def _random_persons(
    cfg: CfgNode, settings: ModelSettings, generator: torch.Generator
) -> list[dict]:
    """Samples as the pose mapper makes them, each of a person as large as its image."""
    height, width = settings.size
    mapper = PoseMapper(cfg, is_train=False)
    samples = []
    for _ in range(settings.batch):
        image = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        samples.append(mapper.view(image.numpy(), (0, 0, width, height)))
    for sample in samples if settings.train else ():
        # Keypoints anywhere in the crop, all of them labelled.
        count = cfg.MODEL.POSE_HEAD.NUM_KEYPOINTS
        sides = torch.tensor(cfg.MODEL.POSE.INPUT_SIZE)
        sample["keypoints"] = torch.rand(count, 2, generator=generator) * sides
        sample["visible"] = torch.ones(count)
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


def list_tables(times: Mapping[str, ModelTimes], batch: int, peak: float) -> list[str]:
    """Tables of several models.

    A row for every model and part, with its time relative to the first model's; the machine's peak;
    and the speed of every part of the network, where multiply-adds were counted.

    Args:
        times: by model.
        batch: images per call.
        peak: float32 operations per second that the machine reaches.
    """
    first = next(iter(times.values())).times
    rows = []
    for name, found in times.items():
        # Models may have different parts: a semantic head has no encoder.
        for part, timing in found.times.items():
            ratio = f"{timing.median / first[part].median:.2f}" if part in first else ""
            row = [name, part, *timing.milliseconds, ratio]
            if part == TOTAL:
                row += [f"{batch / timing.median:.2f}", mebibytes(found.peak_memory)]
            rows.append(row)
    headers = ["model", "part", "ms", "quartiles", "vs first", "images/s", "peak memory, MiB"]
    tables = [markdown_table(rows, headers, text=("model", "part"))]
    tables.append(f"fp32 peak (matrix products, measured in this run): {peak / 1e9:.0f} GFLOP/s")

    rows = []
    for name, found in times.items():
        for part, speed in _speeds(found, batch, peak).items():
            multiply_adds = f"{speed['multiply_adds'] / 1e9:.1f}"
            percent = f"{100 * speed['share_of_fp32_peak']:.0f} %"
            rows.append(
                [name, part, multiply_adds, f"{speed['flops_per_second'] / 1e9:.0f}", percent]
            )
    headers = ["model", "part", "G multiply-adds an image", "GFLOP/s", "of fp32 peak"]
    return [*tables, markdown_table(rows, headers, text=("model", "part"))] if rows else tables


def times_as_dict(found: ModelTimes, batch: int, peak: float) -> dict:
    """For JSON: seconds, bytes, operations per second; arguments as for :func:`list_tables`."""
    return {
        "times": {part: timing.as_dict() for part, timing in found.times.items()},
        "images_per_second": batch / found.times[TOTAL].median,
        "peak_memory_bytes": found.peak_memory,
        "speed": _speeds(found, batch, peak),
    }


def mebibytes(count: int | None) -> str:
    """A number of bytes, which some systems do not know."""
    return "not on this system" if count is None else f"{count / 2**20:.0f}"


def _speeds(found: ModelTimes, batch: int, peak: float) -> dict[str, dict[str, float]]:
    """Speed by part of the network, and of the network as a whole."""
    speeds: dict[str, dict[str, float]] = {}
    for part, multiply_adds in found.multiply_adds.items():
        # A multiply-add is two floating-point operations.
        flops_per_second = 2 * batch * multiply_adds / found.times[part].median
        speeds[part] = {
            "multiply_adds": multiply_adds,
            "flops_per_second": flops_per_second,
            "share_of_fp32_peak": flops_per_second / peak,
        }
    return speeds
