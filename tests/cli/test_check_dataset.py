"""The command check-dataset: what it prints, writes and returns."""

import json

import pytest
import yaml

from proscale.data.datasets.own import register_own_data
from proscale_cli import main


@pytest.fixture
def config(own_block, tmp_path):
    """A configuration file with own panoptic data."""
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"DATASETS": {"OWN": [own_block("panoptic")]}}))
    return str(path)


def test_sound_data(config, tmp_path, capsys):
    file = tmp_path / "new" / "report.json"
    main(["check-dataset", "--config-file", config, "--workers", "1", "--json", str(file)])
    printed = capsys.readouterr().out
    assert "own_panoptic_train: panoptic, 3 images" in printed
    assert "own_panoptic_val: panoptic, 2 images" in printed
    assert "5 images of own_panoptic_train, own_panoptic_val: 0 errors" in printed
    document = json.loads(file.read_text())
    assert document["errors"] == 0
    assert [dataset["images"] for dataset in document["datasets"]] == [3, 2]
    assert sum(entry["pixels"] for entry in document["datasets"][0]["classes"]) == 3 * 64 * 64


def test_errors_give_a_status(own_data, own_block, tmp_path, capsys):
    register_own_data([own_block("panoptic")])
    (own_data / "train" / "000001.jpg").unlink()
    file = tmp_path / "report.json"
    with pytest.raises(SystemExit) as stop:
        main(["check-dataset", "own_panoptic_train", "--workers", "1", "--json", str(file)])
    assert stop.value.code == 1
    assert "image-missing" in capsys.readouterr().out
    document = json.loads(file.read_text())
    (fault,) = [f for f in document["datasets"][0]["faults"] if f["severity"] == "error"]
    assert fault["kind"] == "image-missing"
    assert fault["file"].endswith("000001.jpg")
    assert fault["kind"] in document["meanings"]


def test_overrides_choose_the_data_sets(config, capsys):
    main(
        ["check-dataset", "--config-file", config, "--workers", "1"]
        + ["DATASETS.TRAIN", "()", "DATASETS.TEST", "('own_panoptic_val',)"]
    )
    assert "2 images of own_panoptic_val: 0 errors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to check: expected names of data sets, or --config-file"),
        (["shapes_vall"], "there is no data set shapes_vall; nearest are shapes_val"),
        (["shapes_val", "--workers", "0"], "--workers is 0: expected 1 or more"),
        (["--config-file", "nowhere.yaml"], "there is no configuration file nowhere.yaml"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, message):
    with pytest.raises(SystemExit, match=f"proscale: {message}"):
        main(["check-dataset", *arguments])
