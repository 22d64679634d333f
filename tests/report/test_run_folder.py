"""Curves of runs that were resumed, that broke, or that left damaged lines; facts of logs."""

import json
import math

import pytest

from proscale.report.run_folder import read_log, read_metrics, read_run

TABLE = """----------  -----------------
Python      3.11.7 (main, May)
PyTorch     {version}
----------  -----------------
PyTorch built with:
  - GCC  13.3
"""


@pytest.fixture
def read(tmp_path):
    """Returns a function: lines, texts or objects → the curves."""

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


def test_a_resumed_run_replaces_its_earlier_lines(read):
    lines = [step(i, a=float(i)) for i in (19, 39, 59)]
    curves, _ = read(*lines, step(39, a=-1.0), step(49, a=-2.0))
    assert curves["a"] == [(19, 19.0), (39, -1.0), (49, -2.0)]


def test_a_metric_that_lags_behind_drops_no_other(read):
    """Detectron2 logs a value that was not put in the last iteration with its own, behind it."""
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


def test_detectron2s_log(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(
        f"[11/21 11:25:04] detectron2 INFO: Environment info:\n{TABLE.format(version='1')}\n"
        "[11/21 11:25:05] detectron2 INFO: Command line arguments: Namespace(resume=False)\n"
        "[11/21 11:26:00] d2.utils.events INFO: \x1b[38;5;1m iter: 19  lr: 1  max_mem: 2048M\n"
        "[11/21 11:26:09] d2.utils.events INFO:  iter: 39  lr: 1  max_mem: 1024M\n"
        f"[11/22 08:00:00] detectron2 INFO: Environment info:\n{TABLE.format(version='2')}\n"
        "[11/22 08:00:01] detectron2 INFO: Command line arguments: Namespace(resume=True)\n"
    )
    facts = read_log(path)
    assert facts.environment == {"Python": "3.11.7 (main, May)", "PyTorch": "2"}
    assert facts.command == "Namespace(resume=True)"
    assert facts.starts == 2
    assert (facts.first, facts.last) == ("11/21 11:25:04", "11/22 08:00:01")
    assert facts.peak_memory == 2048


def test_times_with_a_year(tmp_path):
    (tmp_path / "log.txt").write_text("2026-11-21 12:09:08,123 proscale INFO: hello\nmore\n")
    assert read_log(tmp_path / "log.txt").last == "2026-11-21 12:09:08"


def test_any_other_file_is_accepted(tmp_path):
    (tmp_path / "log.txt").write_bytes(b"\xff\xfe\x00Environment info:\nnothing")
    facts = read_log(tmp_path / "log.txt")
    assert (facts.environment, facts.peak_memory, facts.first) == ({}, None, "")


@pytest.mark.parametrize("base", ["http://localhost:1/a.yaml", "/etc/passwd", "base.yaml"])
def test_nothing_outside_is_read_for_the_configuration(tmp_path, base, monkeypatch):
    monkeypatch.setattr("proscale.config.setup.fetched", None)
    (tmp_path / "config.yaml").write_text(f"_BASE_: {base}")
    (tmp_path / "base.yaml").touch()
    run = read_run(tmp_path)
    assert run.cfg is None
    told = [sentence for sentence in run.missing if "configuration cannot be used" in sentence]
    assert f"_BASE_ is {base}" in told[0].replace(f"['{tmp_path}/{base}']", base)
