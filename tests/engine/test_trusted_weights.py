"""MODEL.TRUST_WEIGHTS: whoever loads weights runs nothing that came with them unless it is set, and
it is set by the user alone, never by a file that came with the weights."""

import logging
import os

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from proscale.config import setup_cfg, without_trust
from proscale.errors import CheckpointError
from proscale.predict import Predictor
from proscale_cli import main


@pytest.fixture
def harmful(tmp_path):
    """Returns a function: model → file of its weights with code, and what that leaves behind."""
    trace = tmp_path / "trace"

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    def make(model: torch.nn.Module):
        path = tmp_path / "weights.pth"
        torch.save({"model": model.state_dict(), "meta": Harmful()}, path)
        return str(path), trace

    return make


@pytest.mark.parametrize("resume", [False, True], ids=["weights", "resume"])
def test_training(toy_cfg, toy_trainer, harmful, tmp_path, resume):
    path, trace = harmful(build_model(toy_cfg()))
    keys = ("MODEL.WEIGHTS", path, "OUTPUT_DIR", str(tmp_path))
    (tmp_path / "last_checkpoint").write_text("weights.pth")
    with pytest.raises(CheckpointError, match=r"because it has posix\.mkdir in it"):
        toy_trainer(toy_cfg(*keys)).resume_or_load(resume=resume)
    assert not trace.exists()
    if not resume:
        toy_trainer(toy_cfg(*keys, "MODEL.TRUST_WEIGHTS", True)).resume_or_load(resume=False)
        assert trace.exists()


def test_prediction(small_cfg, harmful):
    path, trace = harmful(build_model(small_cfg))
    with pytest.raises(ValueError, match=r"because it has posix\.mkdir in it"):
        Predictor(small_cfg, path)
    assert not trace.exists()
    small_cfg.MODEL.TRUST_WEIGHTS = True
    Predictor(small_cfg, path)
    assert trace.exists()


@pytest.mark.parametrize(
    "text",
    [
        "MODEL: {TRUST_WEIGHTS: True}",
        "MODEL: {TRUST_WEIGHTS: 'True'}",
        "MODEL: &m {TRUST_WEIGHTS: yes}",
        "_BASE_: base.yaml",
    ],
)
def test_no_file_gives_trust(tmp_path, caplog, text):
    (tmp_path / "base.yaml").write_text("MODEL: {TRUST_WEIGHTS: True}")
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert setup_cfg(str(file), ["MODEL.DEVICE", "cpu"]).MODEL.TRUST_WEIGHTS is False
    warnings = [r.getMessage() for r in caplog.records if "TRUST_WEIGHTS" in r.getMessage()]
    assert warnings == [f"{file}: MODEL.TRUST_WEIGHTS is not obeyed in a file"]
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.TRUST_WEIGHTS", "True"]
    assert setup_cfg(str(file), overrides).MODEL.TRUST_WEIGHTS is True


def test_saved_configuration_has_no_trust(small_cfg):
    small_cfg.MODEL.TRUST_WEIGHTS = True
    assert "TRUST_WEIGHTS: false" in without_trust(small_cfg).dump()
    assert small_cfg.MODEL.TRUST_WEIGHTS


def test_prediction_in_the_folder_of_somebody_else(small_cfg, harmful, tmp_path):
    """Its configuration asks for trust in its own weights."""
    path, trace = harmful(build_model(small_cfg))
    small_cfg.MODEL.TRUST_WEIGHTS = True
    file, image = tmp_path / "config.yaml", tmp_path / "image.png"
    file.write_text(small_cfg.dump())
    Image.new("RGB", (64, 64)).save(image)
    command = [
        "predict",
        image,
        "--config-file",
        file,
        "--weights",
        path,
        "--output",
        tmp_path / "out",
    ]
    with pytest.raises(SystemExit, match=r"because it has posix\.mkdir in it"):
        main([*map(str, command)])
    assert not trace.exists()
    main([*map(str, command), "MODEL.TRUST_WEIGHTS", "True"])
    assert trace.exists()
