"""The peer: built without a download, of the size of ours, and lapped at the same seams."""

import pytest
import torch

from proscale.benchmark.latency import Stopwatch
from proscale.benchmark.model_benchmark import ModelSettings
from proscale.benchmark.peer import PeerRun, is_installed

SETTINGS = ModelSettings(size=(50, 64), batch=1)
pytestmark = pytest.mark.skipif(not is_installed(), reason="needs the package transformers")


def test_parts_and_size():
    run = PeerRun(SETTINGS, torch.device("cpu"))
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    assert parameters / 1e6 == pytest.approx(47.435, abs=0.01)  # mask2former_swin_tiny's
    assert run.images.shape == (1, 3, 64, 64)
    ticks = iter(range(100))
    watch = Stopwatch(lambda: next(ticks))
    run(watch)
    assert watch.parts == {"backbone": 1, "encoder": 1, "transformer decoder": 2}


def test_training_is_refused():
    with pytest.raises(ValueError, match="at inference only"):
        PeerRun(ModelSettings(size=(64, 64), batch=1, train=True), torch.device("cpu"))
