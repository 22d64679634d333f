"""The evaluation benchmark on a few small images."""

import json

import evaluation
import pytest

ARGUMENTS = ["--images", "4", "--size", "60x80", "--repeats", "2"]


def test_table_and_json(capsys, tmp_path):
    pytest.importorskip(
        "panopticapi.evaluation", reason="pip install --no-deps panopticapi-lite==0.2.0"
    )
    evaluation.main([*ARGUMENTS, "--json", str(tmp_path / "out.json")])
    out = capsys.readouterr().out
    assert "images: 4; size: 60x80" in out and "| maps in memory" in out
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written["runs"]) == [
        "maps in memory",
        "evaluator, ground truth from PNG",
        "ground truth and predictions from PNG",
        "panopticapi, one process",
        "panopticapi, all cores",
    ]
    assert all(len(run["samples"]) == 2 for run in written["runs"].values())
    assert written["settings"]["size"] == "60x80"


def test_without_panopticapi(capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "panopticapi", lambda: None)
    evaluation.main(ARGUMENTS)
    assert "panopticapi is not installed" in capsys.readouterr().out


def test_figures_that_differ_are_refused(monkeypatch):
    monkeypatch.setattr(evaluation.Scenes, "run_evaluator", lambda self: 12.5)
    with pytest.raises(RuntimeError, match=r"but 12\.5 by 'evaluator"):
        evaluation.main(ARGUMENTS)
