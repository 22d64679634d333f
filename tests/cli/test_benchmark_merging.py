"""`proscale benchmark merging`: table, file and errors."""

import json

import pytest

from proscale.benchmark.merging_benchmark import DOWNSAMPLE, MATRIX
from proscale_cli import main


def test_table_and_file(tmp_path, capsys):
    file = tmp_path / "out" / "merging.json"
    main(
        "benchmark merging --variants b0 --sizes 32x64,64x32 --presets none,bsm_hq --repeats 1 "
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
        plain = result["runs"]["none"]["median"]
        speed_up = f"{plain / result['runs']['bsm_hq']['median']:.2f}x"
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
        main(["benchmark", "merging", *arguments.split()])
    assert message in capsys.readouterr().err
