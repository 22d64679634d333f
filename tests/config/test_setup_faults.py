"""What the configuration of a start is refused for, and the values that may look wrong.

Files and values out of range are cases of tests/hostile.
"""

import runpy
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
from detectron2.utils.file_io import PathManager

from proscale.checkpoint import check_weights
from proscale.config import check_datasets, check_output_dir, setup_cfg
from proscale.errors import ConfigError
from proscale_cli import main

TRAIN_NET = Path(__file__).parents[2] / "train_net.py"
CPU = ["MODEL.DEVICE", "cpu"]

PUBLISHED = "[int(x * 0.1 * 640) for x in range(5, 21)]"
SIZES = f'INPUT: {{MIN_SIZE_TRAIN: !!python/object/apply:eval ["{PUBLISHED}"]}}'


@pytest.fixture(autouse=True)
def fetched(monkeypatch):
    """Addresses that are asked for; none can be reached."""
    addresses = []

    def get_local_path(address, *_, **__):
        addresses.append(address)
        raise URLError("no network")

    monkeypatch.setattr(PathManager, "get_local_path", get_local_path)
    return addresses


def test_content_of_other_files_is_not_told(tmp_path):
    (tmp_path / "config.yaml").write_text("_BASE_: secret.yaml")
    (tmp_path / "secret.yaml").write_text("root:x:0:0\npass phrase")
    with pytest.raises(ConfigError) as told:
        setup_cfg(str(tmp_path / "config.yaml"), CPU)
    assert str(told.value) == f"{tmp_path}/secret.yaml: it holds a text: expected keys with values"


def test_configuration_of_a_run_has_no_base(tmp_path):
    (tmp_path / "config.yaml").write_text("_BASE_: base.yaml")
    (tmp_path / "base.yaml").touch()
    with pytest.raises(
        ConfigError, match=r"_BASE_ is \['.*base\.yaml'\]: expected none in the conf"
    ):
        setup_cfg(str(tmp_path / "config.yaml"), CPU, saved=True)


def test_address_of_the_user_is_fetched(tmp_path, fetched, monkeypatch):
    with pytest.raises(ConfigError, match=r"https://a/b\.yaml: cannot be fetched: .*no network"):
        setup_cfg("https://a/b.yaml", CPU)
    assert fetched == ["https://a/b.yaml"]
    (tmp_path / "b.yaml").write_text("_BASE_: c.yaml")
    monkeypatch.setattr(PathManager, "get_local_path", lambda _: str(tmp_path / "b.yaml"))
    with pytest.raises(
        ConfigError, match=r"https://a/b\.yaml: _BASE_ is c.yaml: expected YAML files"
    ):
        setup_cfg("https://a/b.yaml", CPU)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "~nosuchuser/x", "\ud800"], ids=ascii)
def test_no_such_configuration(name):
    with pytest.raises(ConfigError, match="there is no configuration file"):
        setup_cfg(name, CPU)


@pytest.mark.parametrize("text", ["1", "1.0", "1e0", "'1e0'"])
def test_numbers_of_keys_with_floats(text, tmp_path):
    (tmp_path / "config.yaml").write_text(f"SOLVER: {{BASE_LR: {text}}}")
    for cfg in (
        setup_cfg(str(tmp_path / "config.yaml"), CPU),
        setup_cfg("", [*CPU, "SOLVER.BASE_LR", text.strip("'")]),
    ):
        assert type(cfg.SOLVER.BASE_LR) is float
        assert cfg.SOLVER.BASE_LR == 1.0


def test_integers_in_lists_of_floats_stay():
    cfg = setup_cfg("", [*CPU, "INPUT.CROP.SIZE", "(64, 96)"])
    assert cfg.INPUT.CROP.SIZE == [64, 96]
    assert {type(value) for value in cfg.INPUT.CROP.SIZE} == {int}


def test_numbers_may_name_files(tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL: {WEIGHTS: 12}")
    assert setup_cfg(str(tmp_path / "config.yaml"), CPU).MODEL.WEIGHTS == "12"
    assert setup_cfg("", [*CPU, "OUTPUT_DIR", "0012"]).OUTPUT_DIR == "0012"


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = setup_cfg("", [*CPU, "OUTPUT_DIR", "~/output", "MODEL.WEIGHTS", "~/model.pth"])
    assert f"{tmp_path}/output" == cfg.OUTPUT_DIR
    assert f"{tmp_path}/model.pth" == cfg.MODEL.WEIGHTS


def test_days_and_long_numbers_may_name_folders(tmp_path):
    (tmp_path / "config.yaml").write_text("OUTPUT_DIR: 2026-11-24")
    assert setup_cfg(str(tmp_path / "config.yaml"), CPU).OUTPUT_DIR == "2026-11-24"
    assert setup_cfg("", [*CPU, "OUTPUT_DIR", "1" * 25]).OUTPUT_DIR == "1" * 25


def test_published_lists_of_sizes_are_computed(tmp_path):
    (tmp_path / "config.yaml").write_text(SIZES)
    cfg = setup_cfg(str(tmp_path / "config.yaml"), CPU)
    assert tuple(int(x * 0.1 * 640) for x in range(5, 21)) == cfg.INPUT.MIN_SIZE_TRAIN


def test_key_given_twice_is_reported(tmp_path, caplog):
    (tmp_path / "config.yaml").write_text("SOLVER: {MAX_ITER: 1}\nSOLVER: {MAX_ITER: 2}")
    assert setup_cfg(str(tmp_path / "config.yaml"), CPU).SOLVER.MAX_ITER == 2
    assert "config.yaml, line 2: SOLVER is there twice" in caplog.text


def test_merge_keys_are_no_repetition(tmp_path, caplog):
    text = "SOLVER: {<<: {MAX_ITER: 1, BASE_LR: 1e-3}, MAX_ITER: 2}"
    (tmp_path / "config.yaml").write_text(text)
    cfg = setup_cfg(str(tmp_path / "config.yaml"), CPU)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (2, 1e-3)
    assert "twice" not in caplog.text


# What starting to train or to evaluate refuses, from KEY VALUE pairs in a folder.
STARTS = {
    "weights that are not there": (
        lambda cfg: check_weights(cfg, resume=False, required=False),
        ("MODEL.WEIGHTS", "{folder}/nowhere.pth"),
        "MODEL.WEIGHTS: there is no file {folder}/nowhere.pth",
    ),
    "weights that are a folder": (
        lambda cfg: check_weights(cfg, resume=False, required=False),
        ("MODEL.WEIGHTS", "{folder}"),
        "MODEL.WEIGHTS: there is no file {folder}",
    ),
    "unknown data set": (
        lambda cfg: check_datasets(cfg.DATASETS.TRAIN, "DATASETS.TRAIN", required=True),
        ("DATASETS.TRAIN", "('coco_2017_train_panoptik',)"),
        "DATASETS.TRAIN: there is no data set coco_2017_train_panoptik; nearest are "
        "coco_2017_train_panoptic",
    ),
    "a number as data set": (
        lambda cfg: check_datasets(cfg.DATASETS.TEST, "DATASETS.TEST"),
        ("DATASETS.TEST", "(3,)"),
        "DATASETS.TEST: there is no data set 3; nearest are ",
    ),
    "no data set": (
        lambda cfg: check_datasets(cfg.DATASETS.TRAIN, "DATASETS.TRAIN", required=True),
        ("DATASETS.TRAIN", "()"),
        "DATASETS.TRAIN is (): expected one data set or more",
    ),
    "weights that no network leads to": (
        lambda cfg: check_weights(cfg, resume=False, required=False),
        ("MODEL.WEIGHTS", "detectron2://ImageNetPretrained/torchvision/R-50.pkl"),
        "MODEL.WEIGHTS is detectron2://ImageNetPretrained/torchvision/R-50.pkl: cannot be fetched: "
        "<urlopen error no network>: expected a network, or the name of a file that was downloaded "
        "from https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision/R-50.pkl; "
        'MODEL.WEIGHTS "" starts from random weights',
    ),
    "weights to evaluate that no network leads to": (
        lambda cfg: check_weights(cfg, resume=False, required=True),
        ("MODEL.WEIGHTS", "https://localhost/model.pth"),
        "MODEL.WEIGHTS is https://localhost/model.pth: cannot be fetched: <urlopen error no "
        "network>: expected a network, or the name of a file that was downloaded from "
        "https://localhost/model.pth",
    ),
    "output in a file": (
        check_output_dir,
        ("OUTPUT_DIR", "{folder}/file/output"),
        "OUTPUT_DIR is {folder}/file/output: expected a folder that can be written "
        "(Not a directory",
    ),
    "output that is a file": (
        check_output_dir,
        ("OUTPUT_DIR", "{folder}/file"),
        "OUTPUT_DIR is {folder}/file: expected a folder that can be written (File exists",
    ),
    "output on the web": (
        check_output_dir,
        ("OUTPUT_DIR", "http://localhost/output"),
        "OUTPUT_DIR is http://localhost/output: expected a folder of this machine",
    ),
    "output with a zero byte": (
        check_output_dir,
        ("OUTPUT_DIR", "a\0b"),
        "OUTPUT_DIR is a\\x00b: expected a folder that can be written (embedded null byte",
    ),
    "output that is read-only": (
        check_output_dir,
        ("OUTPUT_DIR", "/proc/self"),
        "OUTPUT_DIR is /proc/self: expected a folder that can be written (",
    ),
}


@pytest.mark.parametrize("fault", STARTS)
def test_start_is_refused(fault, tmp_path):
    start, pairs, words = STARTS[fault]
    (tmp_path / "file").touch()
    cfg = setup_cfg("", [*CPU, *(text.format(folder=tmp_path) for text in pairs)])
    with pytest.raises(ConfigError) as told:
        start(cfg)
    assert str(told.value).startswith(words.format(folder=tmp_path)), told.value


def test_output_folder_is_made(tmp_path):
    cfg = setup_cfg("", [*CPU, "OUTPUT_DIR", str(tmp_path / "new" / "output")])
    check_output_dir(cfg)
    assert list((tmp_path / "new" / "output").iterdir()) == []


# What follows --config-file, and how train_net.py ends.
TRAININGS = {
    "misspelt key": (
        ["{folder}/config.yaml", "SOLVER.MAX_ITR", "3"],
        "there is no config key SOLVER.MAX_ITR; nearest are SOLVER.MAX_ITER",
    ),
    "no configuration": ([""], "--config-file is missing: expected a file, or a name such as "),
    "no data set": (
        ["{folder}/config.yaml"],
        "DATASETS.TRAIN is (): expected one data set or more",
    ),
    "weights that no network leads to": (
        ["coco/panoptic/proscale_r50_333", *CPU],
        "MODEL.WEIGHTS is detectron2://ImageNetPretrained/torchvision/R-50.pkl: cannot be fetched",
    ),
}


@pytest.mark.parametrize("fault", TRAININGS)
def test_train_net_ends_with_one_line(fault, tmp_path, monkeypatch, capsys):
    arguments, message = TRAININGS[fault]
    (tmp_path / "config.yaml").write_text("MODEL: {DEVICE: cpu}")
    arguments = [text.format(folder=tmp_path) for text in arguments]
    monkeypatch.setattr(sys, "argv", [str(TRAIN_NET), "--config-file", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TRAIN_NET), run_name="__main__")
    assert str(stop.value.code).startswith(f"train_net.py: {message}")
    assert not capsys.readouterr().out


def test_commands_end_with_one_line():
    with pytest.raises(SystemExit) as stop:
        main(["check-dataset", "coco_2017_vall"])
    assert str(stop.value.code).startswith(
        "proscale: there is no data set coco_2017_vall; nearest are coco_2017_val"
    )


@pytest.mark.parametrize("architecture", ["Detector", "PoseEstimator"])
@pytest.mark.parametrize("key", ["TEST.AUG.ENABLED", "TEST.SLIDING_WINDOW.ENABLED"])
def test_boxes_and_poses_have_no_views_and_windows(architecture, key):
    overrides = ["MODEL.META_ARCHITECTURE", architecture, key, "True", "MODEL.DEVICE", "cpu"]
    message = rf"{key} is True: expected False with MODEL.META_ARCHITECTURE {architecture}"
    with pytest.raises(ConfigError, match=message):
        setup_cfg("", overrides)
