"""The model of nuclei that comes with the package, on one of its example images."""

from pathlib import Path

import pytest

import proscale
from proscale.zoo import shipped_models

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "nuclei" / "1021.png"
MAX_BYTES = 12_000_000


def test_it_is_small():
    assert shipped_models()["nuclei"].stat().st_size < MAX_BYTES


def test_it_counts_nuclei(monkeypatch, tmp_path):
    # Neither the data set nor a configuration is needed.
    monkeypatch.chdir(tmp_path)
    result = proscale.Predictor("nuclei")(EXAMPLE)
    names = [segment.name for segment in result.segments]
    # There are 41 nuclei in it; some touch.
    assert names.count("nucleus") == pytest.approx(41, abs=4)
    assert names.count("background") == 1
