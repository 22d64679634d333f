"""The encoders' table, on a small image and with a clock that the test winds."""

import itertools
import json

import encoders
import pytest
import torch
from encoders import ENCODERS, median_ratio

from proscale.benchmark.latency import Timing


def test_ratios_are_taken_within_rounds():
    # The machine was busy in the second round.
    assert median_ratio(Timing((1.0, 9.0, 1.0)), Timing((2.0, 18.0, 2.0))) == 0.5


def test_table_and_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(encoders, "WARMUP", 0)
    monkeypatch.setattr(encoders, "ENCODERS", ENCODERS[::7])
    file, markdown = tmp_path / "encoders.json", tmp_path / "encoders.md"
    encoders.main(
        f"--size 64x96 --repeats 1 --device cpu --json {file} --markdown {markdown}".split()
    )
    printed = capsys.readouterr().out
    document = json.loads(file.read_text())["encoders"]
    assert list(document) == ["Mask2Former", "PRO-SCALE (1, 1, 1)"]
    first, second = document.values()
    assert first["encoder"] > second["encoder"]
    assert first["network"] - first["encoder"] == second["network"] - second["encoder"]
    assert first["encoder_time"]["median"] < first["image_time"]["median"]
    share = f"{second['encoder'] / first['encoder']:.0%}"
    row = next(line for line in markdown.read_text().splitlines() if "PRO-SCALE" in line)
    assert share in row
    assert row in printed


def test_all_encoders_have_configurations():
    for backbone in encoders.BACKBONES:
        for pattern in ENCODERS:
            assert (encoders.CONFIGS / f"{pattern.format(backbone)}.yaml").is_file()


def test_processor_time(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "WARMUP", 0)
    monkeypatch.setattr(encoders, "ENCODERS", ENCODERS[-1:])
    # A clock that ticks once a reading.
    monkeypatch.setattr("time.process_time", itertools.count().__next__)
    file = tmp_path / "encoders.json"
    encoders.main(f"--processor-time --size 32x32 --repeats 1 --device cpu --json {file}".split())
    (figures,) = json.loads(file.read_text())["encoders"].values()
    assert figures["encoder_time"]["samples"] == [1]
    monkeypatch.setattr(encoders, "find_device", torch.device)
    with pytest.raises(SystemExit, match="--processor-time is for --device cpu"):
        encoders.main(["--processor-time", "--device", "cuda"])


def test_wrong_arguments_are_refused(capsys):
    with pytest.raises(SystemExit):
        encoders.main(["--backbone", "r18"])
    assert "invalid choice" in capsys.readouterr().err
