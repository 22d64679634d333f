"""Weights: files that are none, of another model, or of no use."""

import logging

import pytest
import torch
from torch import nn

from proscale.checkpoint import Checkpointer


class Model(nn.Module):
    def __init__(self, width=4, name="backbone"):
        super().__init__()
        self.add_module(name, nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)))
        self.sem_seg_head = nn.Conv2d(width, 2, 1)


def save(path, model):
    torch.save({"model": model.state_dict()}, path)


def with_value(path, name, value):
    model = Model()
    model.state_dict()[name].view(-1)[0] = value
    save(path, model)


# What is written to weights.pth, and what is told.
FAULTS = {
    "empty": (lambda p: p.write_bytes(b""), ("it is no checkpoint",)),
    "text": (lambda p: p.write_text("git-lfs pointer"), ("it is no checkpoint",)),
    "truncated": (
        lambda p: (save(p, Model()), p.write_bytes(p.read_bytes()[:900])),
        ("weights.pth",),
    ),
    "a tensor alone": (lambda p: torch.save(torch.ones(3), p), ("expected a dictionary",)),
    "missing": (lambda p: None, ("weights.pth",)),
    "another architecture": (
        lambda p: torch.save({"model": {"encoder.layer.0.weight": torch.ones(2)}}, p),
        ("no tensor in it fits the model", "backbone.0.weight", "encoder.layer.0.weight"),
    ),
    "another width": (
        lambda p: save(p, Model(width=8)),
        ("the weights do not fit the model", "backbone.0.weight", "(8, 3, 1, 1)", "(4, 3, 1, 1)"),
    ),
    "a part of the model missing": (
        lambda p: save(p, nn.ModuleDict({"backbone": Model().backbone})),
        ("sem_seg_head",),
    ),
    "parts that the model lacks": (
        lambda p: torch.save({"model": {**Model().state_dict(), "criterion.x": torch.ones(1)}}, p),
        ("criterion.x",),
    ),
    "NaN in a weight": (
        lambda p: with_value(p, "backbone.0.weight", float("nan")),
        ("1 of 9 tensors have values that are no finite numbers: backbone.0.weight",),
    ),
    "infinity in a running variance": (
        lambda p: with_value(p, "backbone.1.running_var", float("inf")),
        ("no finite numbers: backbone.1.running_var",),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named(fault, tell, tmp_path, caplog):
    write, words = FAULTS[fault]
    path = tmp_path / "weights.pth"
    write(path)
    checkpointer = Checkpointer(Model(), str(tmp_path), fine_tune=False)
    checkpointer.logger = logging.getLogger("proscale.test")
    told = tell(lambda: checkpointer.resume_or_load(str(path), resume=False))
    assert all(word in told for word in words), told
