"""Ours against the reference implementation and the peer."""

import importlib.util
import itertools
import json

import models
import pytest
import torch
from models import PeerRun, ReferenceRun, compare_with_reference

from proscale.benchmark.latency import Stopwatch
from proscale.benchmark.models import ModelRun, ModelSettings

INFERENCE = ModelSettings(size=(50, 70), batch=1)
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the package transformers"
)


def watch() -> Stopwatch:
    """One whose clock advances by one whenever it is read."""
    ticks = itertools.count()
    return Stopwatch(lambda: next(ticks))


@pytest.fixture
def config_file(small_cfg, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(small_cfg.dump())
    return str(path)


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs the script on the CPU without warm-up and without measuring memory; returns its output
    and its JSON."""
    monkeypatch.setattr("proscale.benchmark.models.WARMUP", 0)
    monkeypatch.setattr("proscale.benchmark.models.can_measure_resident", lambda: False)
    monkeypatch.setattr("models.fp32_peak", lambda device: 4e11)

    def run(*arguments):
        file = tmp_path / "numbers" / "models.json"
        models.main(["--device", "cpu", "--json", str(file), *arguments])
        return capsys.readouterr().out, json.loads(file.read_text())

    return run


def test_the_same_results_with_the_reference_operator(small_cfg, monkeypatch):
    run = ModelRun(small_cfg, INFERENCE)
    found = compare_with_reference(run)
    assert set(found) == {"semantic", "panoptic", "instances"}
    assert max(found.values()) < 1e-4
    calls = []
    # The package's attribute of this name is the function.
    operator = importlib.import_module("proscale.ops.deformable_attention")
    original = operator.reference_deformable_attention
    monkeypatch.setattr(
        operator,
        "reference_deformable_attention",
        lambda *a: calls.append(1) or original(*a),
    )
    run(watch())
    assert not calls
    ReferenceRun(small_cfg, INFERENCE)(watch())
    assert len(calls) == 3


def test_dtypes_side_by_side_against_the_reference_implementation(run, config_file, tmp_path):
    picture, tables = tmp_path / "out" / "latency.svg", tmp_path / "tables.md"
    quality = tmp_path / "quality.json"
    quality.write_text('{"small, bf16": {"PQ": 40.0}}')
    printed, document = run(
        *("--dtype", "fp32", "bf16", "--reference", "--size", "32x64", "--repeats", "1"),
        *("--plot", str(picture), "--markdown", str(tables), "--results", str(quality)),
        *("--config-file", config_file),
    )
    names = ["small, fp32", "small, fp32 (reference)", "small, bf16", "small, bf16 (reference)"]
    assert list(document["models"]) == names
    assert document["differences"]["small, fp32"]["semantic"] < 1e-4
    assert "| small, bf16 |" in tables.read_text()
    assert all(name in picture.read_text() for name in (*names, "PQ", "latency, ms"))
    assert "speed-up" in printed


def test_results_that_differ_from_the_references_are_an_error(run, config_file, monkeypatch):
    monkeypatch.setattr("models.compare_with_reference", lambda run: {"panoptic": 0.2})
    with pytest.raises(
        SystemExit, match=r"reference implementation's by more than 0.001: small: panoptic by 2"
    ):
        run(
            *("--reference", "--size", "32x32", "--repeats", "1"),
            *("--config-file", config_file),
        )


@pytest.mark.parametrize(
    ("can", "wanted", "told"),
    [(True, [], "ours"), (True, ["--keep-freed-memory", "all"], "all"), (False, [], "none")],
)
def test_the_keepers_of_freed_memory_are_reported(run, config_file, monkeypatch, can, wanted, told):
    monkeypatch.setattr("models.can_disable_malloc_trim", lambda: can)
    kept = []
    monkeypatch.setattr("models.disable_malloc_trim", lambda: kept.append(True))
    monkeypatch.setattr("models.enable_malloc_trim", lambda: kept.append(False))
    _, document = run(
        *(*wanted, "--reference", "--size", "32x32", "--repeats", "1"),
        *("--config-file", config_file),
    )
    assert document["settings"]["freed memory kept by"] == told
    assert kept == {"ours": [True, False], "all": [True], "none": []}[told]  # one turn


@needs_transformers
def test_parts_and_size():
    run = PeerRun(torch.device("cpu"), ModelSettings(size=(50, 64), batch=1))
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    assert parameters / 1e6 == pytest.approx(47.435, abs=0.01)  # mask2former_swin_tiny's
    assert run.images.shape == (1, 3, 64, 64)
    run(seen := watch())
    assert seen.parts == {"backbone": 1, "encoder": 1, "transformer decoder": 2}


@needs_transformers
def test_training_is_refused():
    with pytest.raises(ValueError, match="at inference only"):
        PeerRun(torch.device("cpu"), ModelSettings(size=(64, 64), batch=1, train=True))
