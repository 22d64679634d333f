import logging

import pytest
import torch
from detectron2.utils.file_io import PathManager

from proscale.checkpoint import check_weights
from proscale.config import setup_cfg
from proscale.errors import ConfigError, one_sentence

CPU = ["MODEL.DEVICE", "cpu"]


@pytest.fixture
def write_yaml(tmp_path):
    def write(text: str, name: str = "config.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture(params=[False, True], ids=["no_cuda", "cuda"])
def has_cuda(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    return request.param


def test_overrides_come_after_file_after_base(write_yaml):
    write_yaml("SOLVER: {BASE_LR: 1.0, MAX_ITER: 10, IMS_PER_BATCH: 3}", "base.yaml")
    file = write_yaml("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 20, IMS_PER_BATCH: 4}")
    cfg = setup_cfg(file, [*CPU, "SOLVER.IMS_PER_BATCH", "5"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (1.0, 20, 5)
    assert cfg.is_frozen()


def test_device_is_chosen_where_nobody_set_it(has_cuda, caplog):
    with caplog.at_level(logging.WARNING):
        device = setup_cfg().MODEL.DEVICE
    assert device == ("cuda" if has_cuda else "cpu")
    assert [r.message for r in caplog.records if "MODEL.DEVICE" in r.message] == (
        [] if has_cuda else ["CUDA is not available: MODEL.DEVICE is cpu"]
    )


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_chosen_cuda_is_not_replaced(device, has_cuda, write_yaml):
    file = write_yaml(f"MODEL: {{DEVICE: '{device}'}}")
    for arguments in [(file, []), ("", ["MODEL.DEVICE", device])]:
        if has_cuda:
            cfg = setup_cfg(*arguments)
            assert device == cfg.MODEL.DEVICE
        else:
            with pytest.raises(ConfigError, match=r"CUDA is not available; set MODEL\.DEVICE cpu"):
                setup_cfg(*arguments)


def test_chosen_cpu_is_kept(has_cuda):
    assert setup_cfg("", CPU).MODEL.DEVICE == "cpu"


def test_unknown_device_is_refused():
    with pytest.raises(ConfigError, match=r"MODEL\.DEVICE is 'gpu': expected cpu, cuda"):
        setup_cfg("", ["MODEL.DEVICE", "gpu"])


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("SOLVER.BASE_RL", "SOLVER.BASE_LR"),
        ("MODEL.PROSCALE_NUM_LAYERS", "MODEL.PROSCALE.PROSCALE_NUM_LAYERS"),
        ("MODEL.MASKFORMER.NHEADS", "MODEL.MASK_FORMER.NHEADS"),
    ],
)
def test_misspelt_key_names_the_nearest(key, nearest, write_yaml):
    section, name = key.rsplit(".", 1)
    nested = "".join(f"{{{part}: " for part in section.split(".")) + f"{{{name}: 1}}"
    file = write_yaml(nested + "}" * len(section.split(".")))
    with pytest.raises(
        ConfigError, match=rf"there is no config key {key}; nearest are .*{nearest}"
    ):
        setup_cfg("", [key, "1"])
    with pytest.raises(
        ConfigError, match=rf"{file}: there is no config key .*; nearest are MODEL|S"
    ):
        setup_cfg(file, CPU)


def test_key_unlike_any_other():
    with pytest.raises(ConfigError, match=r"there is no config key XYZZY$"):
        setup_cfg("", ["XYZZY", "1"])


def test_wrong_type_names_the_key(write_yaml):
    file = write_yaml("SOLVER: {MAX_ITER: many}")
    with pytest.raises(ConfigError, match=r"config\.yaml: SOLVER\.MAX_ITER is 'many'"):
        setup_cfg(file, CPU)
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITER is 'many': expected a whole number"):
        setup_cfg("", [*CPU, "SOLVER.MAX_ITER", "many"])


def test_odd_overrides_are_refused():
    with pytest.raises(ConfigError, match=r"pairs of KEY VALUE; SOLVER\.MAX_ITER is left over"):
        setup_cfg("", [*CPU, "SOLVER.MAX_ITER"])


@pytest.mark.parametrize("text", ["SOLVER: {", "_BASE_: nowhere.yaml"])
def test_unreadable_file_is_named(text, write_yaml):
    with pytest.raises(ConfigError, match=r"config\.yaml(, line 1)?: "):
        setup_cfg(write_yaml(text), CPU)


def test_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"there is no configuration file nowhere\.yaml"):
        setup_cfg("nowhere.yaml")


def test_weights_must_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(PathManager, "get_local_path", lambda address: f"{tmp_path}/cache/R-50.pkl")

    def cfg(weights):
        return setup_cfg("", [*CPU, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path)])

    file = tmp_path / "model.pth"
    with pytest.raises(ConfigError, match=f"MODEL.WEIGHTS: there is no file {file}"):
        check_weights(cfg(str(file)), resume=False, required=False)
    file.touch()
    check_weights(cfg(str(file)), resume=False, required=True)
    check_weights(cfg("detectron2://ImageNetPretrained/R-50.pkl"), resume=False, required=True)
    check_weights(cfg(""), resume=False, required=False)
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS is empty"):
        check_weights(cfg(""), resume=False, required=True)


def test_last_checkpoint_replaces_weights(tmp_path, caplog):
    cfg = setup_cfg("", [*CPU, "MODEL.WEIGHTS", "nowhere.pth", "OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(ConfigError, match=r"there is no file nowhere\.pth"):
        check_weights(cfg, resume=True, required=True)
    assert "No checkpoint to resume from" in caplog.text
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    check_weights(cfg, resume=True, required=True)


def test_message_of_a_worker_is_without_its_traceback():
    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "a.py", line 1\nproscale.errors.DataError: a.jpg: not readable (x)\n'
    )
    assert one_sentence(ValueError(text)) == "a.jpg: not readable (x)"
    assert one_sentence(ValueError("a.jpg: wrong")) == "a.jpg: wrong"


@pytest.mark.parametrize(
    "name",
    [
        "coco/panoptic/proscale_r50_333",
        "coco/panoptic/proscale_r50_333.yaml",
        "configs/coco/panoptic/proscale_r50_333.yaml",
    ],
)
def test_configuration_is_found_by_name(name, tmp_path, monkeypatch):
    """From any folder, on its base files."""
    monkeypatch.chdir(tmp_path)
    cfg = setup_cfg(name, CPU)
    assert cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS == [3, 3, 3]
    assert cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME == "PROSCALE"


def test_base_is_found_by_name(write_yaml):
    cfg = setup_cfg(write_yaml("_BASE_: configs/demo/proscale_r18_111.yaml"), CPU)
    assert cfg.MODEL.RESNETS.DEPTH == 18


def test_file_comes_before_a_name(write_yaml, tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    write_yaml("SOLVER: {MAX_ITER: 7}", "demo/proscale_r18_111.yaml")
    monkeypatch.chdir(tmp_path)
    assert setup_cfg("demo/proscale_r18_111.yaml", CPU).SOLVER.MAX_ITER == 7


def test_misspelt_name_names_the_nearest():
    with pytest.raises(
        ConfigError,
        match=r"there is no configuration file coco/panoptic/proscale_r50_334; nearest are .*_333",
    ):
        setup_cfg("coco/panoptic/proscale_r50_334", CPU)
