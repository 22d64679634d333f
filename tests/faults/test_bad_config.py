"""Configuration files, keys and values: what is wrong is told in one sentence, before any work."""

import runpy
import sys
from pathlib import Path

import pytest

from proscale.checkpoint import check_weights
from proscale.config import check_datasets, check_output_dir, setup_cfg
from proscale.errors import ConfigError
from proscale_cli import main

TRAIN_NET = Path(__file__).parents[2] / "train_net.py"
CPU = ["MODEL.DEVICE", "cpu"]

EVAL = "!!python/object/apply:eval"
SIZES = f'INPUT: {{MIN_SIZE_TRAIN: {EVAL} ["[int(x * 0.1 * 640) for x in range(5, 21)]"]}}'
LAUGHS = "a0: &a0 {x: 1}\n" + "\n".join(
    f"a{i}: &a{i} {{{', '.join(f'k{k}: *a{i - 1}' for k in range(9))}}}" for i in range(1, 9)
)

# Texts of config.yaml, and what is told.
FILES = {
    "misspelt key": ("SOLVER: {BASE_RL: 1.0}", ("no config key SOLVER.BASE_RL", "SOLVER.BASE_LR")),
    "misspelt block": ("SOLVR: {BASE_LR: 1.0}", ("no config key SOLVR", "SOLVER")),
    "broken syntax": ("SOLVER: {\n\nMODEL: [", ("config.yaml, line ",)),
    "a tab": ("SOLVER:\n\tMAX_ITER: 1", ("config.yaml, line 2", "\\t")),
    "binary": ("SOLVER: \x01", ("config.yaml: not a readable YAML file", "special characters")),
    "a list": ("- SOLVER", ("config.yaml: it holds ['SOLVER']: expected keys",)),
    "a text": ("SOLVER", ("config.yaml: it holds 'SOLVER': expected keys",)),
    "a number as key": ("SOLVER: {1: 2}", ("config.yaml, line 1: '1' is no name of a key",)),
    "nested absurdly": ("A: " + "[" * 2000, ("config.yaml: it is nested too deeply",)),
    "aliases that multiply": (LAUGHS, ("config.yaml: its aliases stand for more than 100000",)),
    "an alias of itself": ("SOLVER: &a {B: *a}", ("config.yaml: its aliases stand for",)),
    "a tag that runs a command": (
        'MODEL: !!python/object/apply:os.system ["true"]',
        ("config.yaml, line 1", "!!python/object/apply:os.system is refused", "runs code"),
    ),
    "a tag that evaluates": (
        f'INPUT: {{MIN_SIZE_TRAIN: {EVAL} ["[1 for x in (1,)]"]}}',
        ("config.yaml, line 1", "apply:eval is refused"),
    ),
    "a tag of a name": ("MODEL: !!python/name:os.system", ("!!python/name:os.system is refused",)),
    "an unknown tag": ("MODEL: !secret 1", ("config.yaml, line 1", "!secret")),
    "_BASE_ that is not there": (
        "_BASE_: nowhere.yaml",
        ("config.yaml: _BASE_ is ", "nowhere.yaml, but there is no such file"),
    ),
    "_BASE_ of itself": ("_BASE_: config.yaml", ("_BASE_ leads in a circle", "config.yaml -> ")),
    "_BASE_ in a circle": ("_BASE_: other.yaml", ("other.yaml: _BASE_ leads in a circle",)),
    "_BASE_ that is a number": ("_BASE_: 3", ("config.yaml: _BASE_ is 3: expected names",)),
    "broken _BASE_": ("_BASE_: broken.yaml", ("broken.yaml, line 1",)),
    "another version": ("VERSION: 1", ("config.yaml: VERSION is 1: expected 2",)),
    "a block that is a number": ("MODEL: 3", ("MODEL is 3: expected a block of keys",)),
    "a value that is a block": (
        "SOLVER: {BASE_LR: {A: 1}}",
        ("SOLVER.BASE_LR is {'A': 1}: expected a number",),
    ),
    "a value left out": ("SOLVER: {BASE_LR: }", ("SOLVER.BASE_LR is None: expected a number",)),
    "text for integer": (
        "SOLVER: {MAX_ITER: many}",
        ("config.yaml: SOLVER.MAX_ITER is 'many': expected a whole number, such as 40000",),
    ),
    "true for integer": (
        "SOLVER: {MAX_ITER: true}",
        ("SOLVER.MAX_ITER is True: expected a whole",),
    ),
    "list for number": ("SOLVER: {MAX_ITER: [1]}", ("SOLVER.MAX_ITER is [1]: expected a whole",)),
    "integer for number": ("SOLVER: {BASE_LR: 1}", ("SOLVER.BASE_LR is 1", "a decimal point")),
    "text for truth": (
        "INPUT: {COLOR_AUG_SSD: 'yes please'}",
        ("INPUT.COLOR_AUG_SSD is 'yes please': expected True or False",),
    ),
    "number for list": (
        "MODEL: {SWIN: {DEPTHS: 2}}",
        ("MODEL.SWIN.DEPTHS is 2: expected a list of numbers, such as [2, 2, 6, 2]",),
    ),
    "list with a text": (
        "MODEL: {SWIN: {DEPTHS: [2, two, 6, 2]}}",
        ("MODEL.SWIN.DEPTHS is [2, 'two', 6, 2]: expected a list of numbers",),
    ),
    "number for text": ("MODEL: {WEIGHTS: true}", ("MODEL.WEIGHTS is True: expected a text",)),
    "not a number": (
        "SOLVER: {BASE_LR: .nan}",
        ("SOLVER.BASE_LR is nan: expected numbers from 0",),
    ),
}


@pytest.mark.parametrize("fault", FILES)
def test_fault_of_file_is_named(fault, tmp_path):
    text, words = FILES[fault]
    config = tmp_path / "config.yaml"
    config.write_text(text)
    (tmp_path / "other.yaml").write_text("_BASE_: config.yaml")
    (tmp_path / "broken.yaml").write_text("A: ]")
    with pytest.raises(ConfigError) as told:
        setup_cfg(str(config), CPU)
    assert all(word in str(told.value) for word in words), told.value
    assert "\n" not in str(told.value)


# A key, a value, and what is told of it.
VALUES = [
    ("MODEL.META_ARCHITECTURE", "MaskFomer", "MaskFormer"),
    ("MODEL.BACKBONE.NAME", "resnet50", "D2SwinTransformer"),
    ("MODEL.SEM_SEG_HEAD.NAME", "Head", "MaskFormerHead"),
    ("MODEL.SEM_SEG_HEAD.NORM", "BatchNorm", "SyncBN"),
    ("MODEL.RESNETS.DEPTH", "51", "18 or 34 or 50 or 101 or 152"),
    ("INPUT.FORMAT", "rgb", "RGB or BGR"),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "0", "whole numbers from 1"),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "-3", "whole numbers from 1"),
    ("MODEL.SEM_SEG_HEAD.CONVS_DIM", "0", "whole numbers from 1"),
    ("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "-1", "whole numbers from 0"),
    ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "-1", "whole numbers from 0"),
    ("MODEL.MASK_FORMER.HIDDEN_DIM", "-8", "whole numbers from 1"),
    ("MODEL.MASK_FORMER.DIM_FEEDFORWARD", "0", "whole numbers from 1"),
    ("MODEL.MASK_FORMER.DROPOUT", "7.0", "numbers from 0 to 1"),
    ("MODEL.MASK_FORMER.CLASS_WEIGHT", "-1.0", "numbers from 0"),
    ("MODEL.SWIN.NUM_HEADS", "[3, 0, 12, 24]", "whole numbers from 1"),
    ("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]", "numbers above 0"),
    ("MODEL.PIXEL_MEAN", "[1.0]", "3 numbers each with INPUT.FORMAT BGR"),
    ("INPUT.IMAGE_SIZE", "0", "whole numbers from 1"),
    ("INPUT.MIN_SIZE_TRAIN", "(0,)", "whole numbers from 1"),
    ("INPUT.MIN_SCALE", "0.0", "numbers above 0"),
    ("SOLVER.IMS_PER_BATCH", "0", "whole numbers from 1"),
    ("SOLVER.BASE_LR", "-0.1", "numbers from 0"),
    ("DATALOADER.NUM_WORKERS", "-1", "whole numbers from 0"),
    ("MODEL", "3", "META_ARCHITECTURE"),
]


@pytest.mark.parametrize(("key", "value", "accepted"), VALUES)
def test_value_out_of_range_is_named(key, value, accepted):
    with pytest.raises(ConfigError) as told:
        setup_cfg("", [*CPU, key, value])
    assert str(told.value).startswith(f"{key} is "), told.value
    assert ": expected " in str(told.value)
    assert accepted in str(told.value)


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
        lambda cfg: check_datasets(cfg.DATASETS.TRAIN, "DATASETS.TRAIN"),
        ("DATASETS.TRAIN", "('coco_2017_train_panoptik',)"),
        "DATASETS.TRAIN: there is no data set coco_2017_train_panoptik; nearest are "
        "coco_2017_train_panoptic",
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


def test_train_net_ends_with_one_line(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("MODEL: {DEVICE: cpu}")
    arguments = ["--config-file", str(tmp_path / "config.yaml"), "SOLVER.MAX_ITR", "3"]
    monkeypatch.setattr(sys, "argv", [str(TRAIN_NET), *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TRAIN_NET), run_name="__main__")
    assert str(stop.value.code).startswith(
        "train_net.py: there is no config key SOLVER.MAX_ITR; nearest are SOLVER.MAX_ITER"
    )


def test_commands_end_with_one_line():
    with pytest.raises(SystemExit) as stop:
        main(["check-dataset", "coco_2017_vall"])
    assert str(stop.value.code).startswith(
        "proscale: there is no data set coco_2017_vall; nearest are coco_2017_val"
    )
