"""All kinds of merging are run; the script's table, file and errors."""

import json

import merging
import pytest
import torch
from merging import (
    ATTENTION,
    DOWNSAMPLE,
    MATRIX,
    REST,
    RUNS,
    MergingSettings,
    benchmark_merging,
)
from torch.nn import functional as F

from proscale.benchmark.latency import TOTAL
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

    monkeypatch.setattr(merging, "WARMUP", 0)
    monkeypatch.setattr(MixVisionTransformer, "forward", recorded)


def test_all_runs_in_turns(monkeypatch):
    outputs: list[torch.Tensor] = []
    record(monkeypatch, outputs)
    times = benchmark_merging(settings(), RUNS, repeats=2)
    assert list(times) == list(RUNS)
    for parts in times.values():
        assert list(parts) == [REST, ATTENTION, TOTAL]
        assert all(len(timing.samples) == 2 and timing.best > 0 for timing in parts.values())

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
    unmerged, merged, unmerged_again, reused = outputs
    assert torch.equal(unmerged, unmerged_again)
    assert not torch.equal(merged, reused)


def test_table_and_file(tmp_path, capsys):
    file = tmp_path / "out" / "merging.json"
    merging.main(
        "--variants b0 --sizes 32x64,64x32 --presets none,bsm_hq --repeats 1 "
        f"--device cpu --json {file}".split()
    )
    printed = capsys.readouterr().out
    document = json.loads(file.read_text())
    assert [(result["variant"], result["size"]) for result in document["results"]] == [
        ("b0", [32, 64]),
        ("b0", [64, 32]),
    ]
    for result in document["results"]:
        assert list(result["runs"]) == ["none", "bsm_hq", DOWNSAMPLE, MATRIX]
        parts = result["runs"]["none"]["parts"]
        sums = [sum(pair) for pair in zip(*(parts[p]["samples"] for p in parts), strict=True)]
        assert sums == pytest.approx(result["runs"]["none"]["samples"])
        unmerged = result["runs"]["none"]["median"]
        speed_up = f"{unmerged / result['runs']['bsm_hq']['median']:.2f}x"
        assert any(
            f"{result['size'][0]}x{result['size'][1]}" in line
            and "bsm_hq" in line
            and speed_up in line
            for line in printed.splitlines()
        )
    assert document["settings"] == {"dtype": "float32", "matching reuse": 1, "repeats": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--variants b0,b9", "'b9': expected b0, b1"),
        ("--presets bsm", "'bsm': expected none, bsm_hq"),
        ("--sizes 1024", "expected HxW"),
        ("--matching-reuse 0", "whole numbers from 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        merging.main(arguments.split())
    assert message in capsys.readouterr().err
