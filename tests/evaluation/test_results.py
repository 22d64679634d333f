"""Files of results."""

import json

import pytest

from proscale.evaluation.results import write_results


def test_nan_becomes_null_at_any_depth(tmp_path):
    nan = float("nan")
    results = {"a": nan, "b": [{"c": nan, "d": 1.5}, 2, "nan"], "e": None}
    write_results(str(tmp_path / "deep" / "er"), "x.json", results)
    written = json.loads((tmp_path / "deep/er/x.json").read_text())
    assert written == {"a": None, "b": [{"c": None, "d": 1.5}, 2, "nan"], "e": None}


def test_infinite_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError):
        write_results(str(tmp_path), "x.json", {"a": float("inf")})
    assert not (tmp_path / "x.json").exists()
