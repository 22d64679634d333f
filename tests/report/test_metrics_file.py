"""Curves of runs that were resumed, that broke, or that left damaged lines."""

import json
import math

import pytest

from proscale.report.metrics_file import read_metrics


@pytest.fixture
def read(tmp_path):
    """Returns a function: lines, texts or objects → what is read from them."""

    def of_lines(*lines):
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "metrics.json").write_text("".join(f"{text}\n" for text in texts))
        return read_metrics(tmp_path / "metrics.json")

    return of_lines


def step(iteration, **values):
    return {"iteration": iteration, **values}


def test_curves_by_name(read):
    curves, damaged = read(step(19, a=1, b=2.5), step(39, a=3))
    assert curves == {"a": [(19, 1.0), (39, 3.0)], "b": [(19, 2.5)]}
    assert damaged == []


def test_what_a_resumed_run_logged_counts(read):
    lines = [step(i, a=float(i)) for i in (19, 39, 59)]
    curves, _ = read(*lines, step(39, a=-1.0), step(49, a=-2.0))
    assert curves["a"] == [(19, 19.0), (39, -1.0), (49, -2.0)]


def test_a_metric_that_lags_behind_drops_no_other(read):
    """Detectron2 logs what was not put in the last iteration with an earlier one, behind it."""
    curves, _ = read(step(19, a=1.0, norm=1.0), step(39, a=2.0), step(38, norm=2.0))
    assert curves == {"a": [(19, 1.0), (39, 2.0)], "norm": [(19, 1.0), (38, 2.0)]}


def test_values_that_are_not_finite_stay(read):
    curves, damaged = read('{"iteration": 0, "a": NaN, "b": Infinity}')
    assert math.isnan(curves["a"][0][1]) and curves["b"] == [(0, math.inf)]
    assert damaged == []


@pytest.mark.parametrize(
    "line",
    ['{"iteration": 5, "a"', "[1]", '{"a": 1}', '{"iteration": "5"}', "", "1" * 5000]
    + [f'{{"iteration": 1, "a": {10**400}}}', f'{{"iteration": {10**400}}}']
    + ["[" * 100_000, "\x00"],
)
def test_damaged_lines_are_numbered(read, line):
    curves, damaged = read(step(0, a=1.0), line, step(1, a=2.0))
    assert curves == {"a": [(0, 1.0), (1, 2.0)]}
    assert damaged == [2]


def test_texts_are_no_curves(read):
    assert read(step(0, a="fast", b=None, c=True))[0] == {}
