"""Inputs of the operator, the backends that are compared, and the script."""

import dataclasses
import json

import deformable_attention as script
import pytest
import torch
from deformable_attention import (
    FORWARD,
    FORWARD_BACKWARD,
    OperatorSettings,
    benchmark_operator,
    operator_inputs,
)

from proscale.ops import available_backends, deformable_attention

SETTINGS = OperatorSettings(
    spatial_shapes=[(3, 4), (6, 8)],
    heads=2,
    width=4,
    points=3,
    dtype="float32",
    near=True,
    device=torch.device("cpu"),
)
TOKENS = 3 * 4 + 6 * 8


def test_every_cell_is_a_query():
    value, locations, weights = operator_inputs(SETTINGS)
    assert value.shape == (1, TOKENS, 2, 4)
    assert locations.shape == (1, TOKENS, 2, 2, 3, 2)
    assert weights.shape == (1, TOKENS, 2, 2, 3)
    torch.testing.assert_close(weights.sum((-2, -1)), torch.ones(1, TOKENS, 2))


def test_near_points_surround_their_query():
    settings = dataclasses.replace(SETTINGS, spatial_shapes=[(40, 60)], points=64)
    _, locations, _ = operator_inputs(settings)
    (centres,) = locations.mean((2, 3, 4))
    # The first cell, its right neighbour, and the last one.
    expected = torch.tensor([(0.5 / 60, 0.5 / 40), (1.5 / 60, 0.5 / 40), (59.5 / 60, 39.5 / 40)])
    cells = torch.tensor((60, 40))
    assert ((centres[[0, 1, -1]] - expected) * cells).abs().max() < 1
    distances = (locations - locations.mean((2, 3, 4), keepdim=True)) * cells
    assert distances.std() == pytest.approx(script.NEAR_CELLS, rel=0.05)


def test_far_points_are_anywhere():
    settings = dataclasses.replace(SETTINGS, near=False, points=64)
    _, locations, _ = operator_inputs(settings)
    assert 0 <= locations.min() < 0.05 < 0.95 < locations.max() <= 1
    assert locations.mean((0, 2, 3, 4)).sub(0.5).abs().max() < 0.15


def test_only_values_are_in_the_given_dtype():
    inputs = operator_inputs(dataclasses.replace(SETTINGS, dtype="bfloat16"))
    assert [tensor.dtype for tensor in inputs] == [torch.bfloat16, torch.float32, torch.float32]


def test_backends_are_called_in_turns_beside_the_reference(monkeypatch):
    calls = []

    def record(value, shapes, locations, weights, backend):
        calls.append((backend, torch.is_grad_enabled()))
        if backend == "picky":
            raise ValueError("accepts nothing")
        return deformable_attention(value, shapes, locations, weights, "reference")

    monkeypatch.setattr(script, "deformable_attention", record)
    monkeypatch.setattr(script, "WARMUP", 0)
    times = benchmark_operator(SETTINGS, ["fast", "picky"], repeats=2)
    one_round = [(name, mode) for name in ("reference", "fast") for mode in (False, True)]
    assert calls[-8:] == 2 * one_round
    assert list(times.by_backend) == ["reference", "fast"]
    assert times.refused == {"picky": "accepts nothing"}
    for modes in times.by_backend.values():
        assert list(modes) == [FORWARD, FORWARD_BACKWARD]
        assert all(len(timing.samples) == 2 for timing in modes.values())


def test_key_aware_operator_has_queries_and_the_same_backends():
    settings = dataclasses.replace(SETTINGS, key_aware=True)
    _, _, queries = operator_inputs(settings)
    assert queries.shape == (1, TOKENS, 2, 4)
    times = benchmark_operator(settings, ["embedding_bag"], repeats=1)
    assert list(times.by_backend) == ["reference", "embedding_bag"]
    assert times.refused == {}


def test_a_failing_reference_is_an_error(monkeypatch):
    def fail(*_):
        raise RuntimeError("out of order")

    monkeypatch.setattr(script, "deformable_attention", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        benchmark_operator(SETTINGS, [], repeats=1)


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the script on the CPU; returns its output and its JSON."""

    def run(*arguments):
        file = tmp_path / "numbers" / "operator.json"
        script.main(["--device", "cpu", "--json", str(file), *arguments])
        return capsys.readouterr().out, json.loads(file.read_text())

    return run


def test_operator(run):
    printed, document = run("--sizes", "2x3,4x6", "--repeats", "3", "--heads", "2")
    assert "levels: 2x3, 4x6; heads: 2; width: 32; points: 4; spread: near" in printed
    assert "speed-up" in printed
    assert document["settings"]["repeats"] == 3
    assert document["machine"]["threads"] > 0
    assert set(document["backends"]) | set(document["refused"]) == set(available_backends())
    for modes in document["backends"].values():
        for mode in ("forward", "forward + backward"):
            lower, upper = modes[mode]["quartiles"]
            assert lower <= modes[mode]["median"] <= upper
            assert len(modes[mode]["samples"]) == 3


def test_operator_with_other_settings(run):
    printed, document = run(
        *("--sizes", "2x3", "--spread", "far", "--dtype", "bfloat16", "--repeats", "1"),
        *("--width", "8", "--points", "2", "--backends", "reference"),
    )
    assert "spread: far; dtype: bfloat16" in printed
    assert list(document["backends"]) == ["reference"]
    assert document["refused"] == {}
    settings = document["settings"]
    assert (settings["width"], settings["points"]) == (8, 2)


def test_unknown_backends_are_refused():
    with pytest.raises(SystemExit, match="--backends is warp: expected ref"):
        script.main(["--backends", "reference,warp"])


def test_missing_cuda_ends_with_one_sentence(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device is cuda, but CUDA is not available"):
        script.main(["--device", "cuda"])
