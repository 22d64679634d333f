"""Parts, settings and inputs of the models."""

import dataclasses

import pytest
import torch

from proscale.benchmark import models
from proscale.benchmark.latency import TOTAL, Stopwatch
from proscale.benchmark.machine import can_measure_resident, model_bytes
from proscale.benchmark.models import (
    DTYPES,
    QUERIES_PER_CONFIDENT,
    TARGETS_PER_IMAGE,
    ModelRun,
    ModelSettings,
    benchmark_models,
    confident_logits,
)
from proscale.cost.model_cost import NETWORK

INFERENCE = ModelSettings(size=(50, 70), batch=1)
TRAINING = dataclasses.replace(INFERENCE, train=True)


@pytest.fixture
def quick(monkeypatch):
    """Without warm-up, and peak memory without the seconds that a new process takes."""
    monkeypatch.setattr(models, "WARMUP", 0)
    monkeypatch.setattr(models, "can_measure_resident", lambda: True)
    monkeypatch.setattr(models, "in_fresh_process", lambda *_: 1000)


class CountingClock:
    """Advances by one whenever it is read."""

    def __init__(self):
        self.now = 0

    def __call__(self) -> int:
        self.now += 1
        return self.now


def parts_of(run):
    watch = Stopwatch(CountingClock())
    run(watch)
    return watch.parts


def test_inference_is_lapped_at_every_seam_once(small_cfg):
    parts = parts_of(ModelRun(small_cfg, INFERENCE))
    assert list(parts) == ["input", "backbone", "encoder", "transformer decoder", "results"]
    assert set(parts.values()) == {1}


@pytest.mark.parametrize("kind", ["small_detector_cfg", "small_pose_cfg"])
@pytest.mark.parametrize("settings", [INFERENCE, TRAINING])
def test_other_models_are_lapped_at_their_seams(kind, settings, request):
    run = ModelRun(request.getfixturevalue(kind), settings)
    parts = parts_of(run)
    end = ["losses", "backward"] if settings.train else ["results"]
    middle = ["head"] if kind == "small_pose_cfg" else ["encoder", "transformer decoder"]
    assert list(parts) == ["input", "backbone", *middle, *end]
    assert set(parts.values()) == {1}
    counted = run.multiply_adds()
    assert set(counted) == (set() if settings.train else {"backbone", *middle, NETWORK})


def test_the_flip_test_counts_twice(small_pose_cfg):
    once, twice = (
        ModelRun(small_pose_cfg, INFERENCE).multiply_adds()[NETWORK]
        for small_pose_cfg.MODEL.POSE.FLIP_TEST in (False, True)
    )
    assert twice == 2 * once


def test_a_batch_is_one_call_of_every_part(small_cfg):
    run = ModelRun(small_cfg, dataclasses.replace(INFERENCE, batch=2))
    sizes = []
    run.model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    assert set(parts_of(run).values()) == {1}
    assert sizes == [(2, 3, 64, 96)]


def test_training_goes_backward_and_leaves_no_gradients(small_cfg):
    run = ModelRun(small_cfg, TRAINING)
    reached = []
    next(run.model.backbone.parameters()).register_hook(lambda _: reached.append(True))
    parts = parts_of(run)
    assert list(parts)[-3:] == ["transformer decoder", "losses", "backward"]
    assert reached
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert [len(sample["instances"]) for sample in run.batch] == [TARGETS_PER_IMAGE]
    areas = run.batch[0]["instances"].gt_masks.tensor.flatten(1).sum(1)
    assert areas.min() > 0
    assert len(areas.unique()) > 1


def test_results_are_those_of_a_model_that_found_something(small_cfg):
    small_cfg.MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD = 0.0
    run = ModelRun(small_cfg, INFERENCE)
    results = []
    run.model.register_forward_hook(lambda module, inputs, output: results.extend(output))
    parts_of(run)
    _, segments = results[0]["panoptic_seg"]
    assert segments
    assert results[0]["sem_seg"].shape[1:] == INFERENCE.size


@pytest.mark.parametrize("selected", [9, 4000])
def test_queries_that_are_chosen_from_tokens_are_confident_alike(small_cfg, selected):
    # 4000 are more than the image has tokens.
    small_cfg.MODEL.MASK_FORMER.SELECTED_QUERIES = selected
    run = ModelRun(small_cfg, ModelSettings((64, 64), batch=1))
    (result,) = run.results()
    assert len(result["instances"])


def test_the_stated_share_of_queries_is_confident():
    logits = confident_logits(100, 133, torch.Generator().manual_seed(0))
    scores, labels = logits.softmax(-1).max(-1)
    assert scores.min() > 0.8
    assert (labels < 133).sum() == 100 // QUERIES_PER_CONFIDENT


def test_the_model_is_left_as_it_was(small_cfg):
    run = ModelRun(small_cfg, INFERENCE)
    parts_of(run)
    predictor = run.model.sem_seg_head.predictor
    assert not run.model.backbone._forward_hooks
    assert not predictor._forward_hooks
    assert not predictor._forward_pre_hooks


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_dtype_is_what_the_network_computes_in(small_cfg, dtype):
    run = ModelRun(small_cfg, dataclasses.replace(INFERENCE, dtype=dtype))
    dtypes = []
    run.model.sem_seg_head.predictor.class_embed.register_forward_hook(
        lambda module, inputs, output: dtypes.append(output.dtype)
    )
    parts_of(run)
    assert dtypes == [DTYPES[dtype]]


def test_cost_of_several_models(small_cfg, quick):
    other = small_cfg.clone()
    other.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [2, 2, 2]
    runs = {"small": ModelRun(small_cfg, INFERENCE), "deeper": ModelRun(other, INFERENCE)}
    costs = benchmark_models(runs, repeats=2)
    assert list(costs) == ["small", "deeper"]
    for name, cost in costs.items():
        assert list(cost.times)[-1] == TOTAL
        for sample, total in enumerate(cost.times[TOTAL].samples):
            seconds = {part: cost.times[part].samples[sample] for part in cost.times}
            outside = seconds["input"] + seconds["results"]
            assert seconds[NETWORK] + outside == pytest.approx(total)
            network = ("backbone", "encoder", "transformer decoder")
            assert sum(seconds[part] for part in network) == pytest.approx(seconds[NETWORK])
        assert cost.peak_memory == model_bytes(runs[name].model) + 1000
    small, deeper = (costs[name].multiply_adds for name in ("small", "deeper"))
    assert small["encoder"] < deeper["encoder"]
    assert small["backbone"] == deeper["backbone"]


@pytest.mark.skipif(not can_measure_resident(), reason="needs Linux's /proc and glibc")
def test_training_has_peak_memory_but_no_count(small_cfg, monkeypatch):
    monkeypatch.setattr(models, "WARMUP", 0)
    run = ModelRun(small_cfg, TRAINING)
    (cost,) = benchmark_models({"small": run}, repeats=1).values()
    assert cost.multiply_adds == {}
    # The parameters, a gradient for each, and activations.
    assert 2 * model_bytes(run.model) < cost.peak_memory < 2**30


def test_peak_memory_is_left_out_where_it_cannot_be_measured(small_cfg, quick, monkeypatch):
    monkeypatch.setattr(models, "can_measure_resident", lambda: False)
    (cost,) = benchmark_models({"small": ModelRun(small_cfg, TRAINING)}, repeats=1).values()
    assert cost.peak_memory is None


def test_compiled_are_the_parts_between_the_seams(small_cfg, monkeypatch):
    compiled = []

    def compile_(function):
        compiled.append(function.__qualname__)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    parts = parts_of(ModelRun(small_cfg, dataclasses.replace(INFERENCE, compiled=True)))
    assert len(compiled) == 3
    assert list(parts) == ["input", "backbone", "encoder", "transformer decoder", "results"]


@pytest.mark.parametrize("train", [False, True])
def test_semantic_models_have_a_head(cfg, train):
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "MixVisionTransformer"
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME, head.NORM, head.NUM_CLASSES, head.CONVS_DIM = "SegFormerHead", "BN", 19, 32
    head.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    run = ModelRun(cfg, dataclasses.replace(INFERENCE, size=(64, 64), train=train))
    end = ["losses", "backward"] if train else ["results"]
    assert list(parts_of(run)) == ["input", "backbone", "head", *end]
    assert set(run.multiply_adds()) == (set() if train else {"backbone", "head", NETWORK})
