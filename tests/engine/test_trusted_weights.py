"""MODEL.TRUST_WEIGHTS: whoever loads weights runs nothing that came with them unless it is set."""

import os

import pytest
import torch
from detectron2.modeling import build_model

from proscale.errors import CheckpointError
from proscale.predict import Predictor


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
