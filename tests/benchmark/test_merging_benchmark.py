"""The merging benchmark runs what it says."""

import torch
from torch.nn import functional as F

from proscale.benchmark import merging_benchmark
from proscale.benchmark.merging_benchmark import (
    DOWNSAMPLE,
    MATRIX,
    RUNS,
    MergingSettings,
    benchmark_merging,
)
from proscale.modeling.backbones.mit import MixVisionTransformer


def settings(**changes) -> MergingSettings:
    values = {
        "variant": "b0",
        "size": (64, 96),
        "dtype": "float32",
        "matching_reuse": 1,
        "device": torch.device("cpu"),
    }
    return MergingSettings(**(values | changes))


def record(monkeypatch, outputs: list[torch.Tensor]) -> None:
    """Have every forward pass append its `res5`."""
    forward = MixVisionTransformer.forward

    def recorded(self, images):
        features = forward(self, images)
        outputs.append(features["res5"])
        return features

    monkeypatch.setattr(merging_benchmark, "WARMUP", 0)
    monkeypatch.setattr(MixVisionTransformer, "forward", recorded)


def test_all_runs_in_turns(monkeypatch):
    outputs: list[torch.Tensor] = []
    record(monkeypatch, outputs)
    times = benchmark_merging(settings(), RUNS, repeats=2)
    assert list(times) == list(RUNS)
    assert all(len(timing.samples) == 2 and timing.best > 0 for timing in times.values())

    first = dict(zip(RUNS, outputs, strict=False))
    for name, output in first.items():
        if name == DOWNSAMPLE:
            assert output.shape[2:] == (1, 2)
        elif name in ("none", MATRIX):
            torch.testing.assert_close(output, first["none"], rtol=1e-4, atol=1e-5)
        else:
            assert not torch.allclose(output, first["none"], rtol=1e-4, atol=1e-5)


def test_unmerged_is_always_there():
    assert list(benchmark_merging(settings(), ["bsm_fast"], repeats=1)) == ["none", "bsm_fast"]


def test_dtype_and_reuse_are_used(monkeypatch):
    dtypes = set()
    attention = F.scaled_dot_product_attention

    def recorded(query, key, value):
        dtypes.add(query.dtype)
        return attention(query, key, value)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    benchmark_merging(settings(dtype="bfloat16"), [], repeats=1)
    assert dtypes == {torch.bfloat16}
    monkeypatch.undo()

    outputs: list[torch.Tensor] = []
    record(monkeypatch, outputs)
    for reuse in (1, 2):
        benchmark_merging(settings(size=(128, 160), matching_reuse=reuse), ["bsm_hq"], repeats=1)
    plain, merged, plain_again, reused = outputs
    assert torch.equal(plain, plain_again)
    assert not torch.equal(merged, reused)
