"""Weights of other shapes: a new class layer when fine-tuning, an error otherwise."""

import logging

import pytest
import torch
from torch import nn

from proscale.checkpoint.training_checkpointer import Checkpointer
from proscale.errors import CheckpointError


class Model(nn.Module):
    """Has a class layer where the real models have theirs."""

    def __init__(self, num_classes: int, width: int = 4):
        super().__init__()
        self.stem = nn.Linear(3, 3)
        self.backbone = nn.Linear(3, width)
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.predictor = nn.Module()
        self.sem_seg_head.predictor.class_embed = nn.Linear(width, num_classes + 1)
        self.criterion = nn.Module()
        self.criterion.register_buffer("empty_weight", torch.ones(num_classes + 1))


@pytest.fixture
def weights(tmp_path):
    """Weights of a model with 133 classes, and that model."""
    model = Model(133)
    path = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, path)
    return model, str(path)


def test_fine_tuning_renews_the_class_layer_and_says_so_in_one_line(weights, tmp_path, caplog):
    trained, path = weights
    model = Model(9)
    new = {key: value.clone() for key, value in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        Checkpointer(model, str(tmp_path), fine_tune=True).resume_or_load(path, resume=False)
    assert [record.message for record in caplog.records] == [
        f"{path}: the checkpoint has a class layer of 134 outputs, this model one of 10: "
        "sem_seg_head.predictor.class_embed starts afresh, all else is loaded"
    ]
    assert torch.equal(model.backbone.weight, trained.backbone.weight)
    class_embed = "sem_seg_head.predictor.class_embed.weight"
    assert torch.equal(model.state_dict()[class_embed], new[class_embed])
    assert model.criterion.empty_weight.shape == (10,)


def test_same_classes_are_loaded_without_a_word(weights, tmp_path, caplog):
    trained, path = weights
    model = Model(133)
    with caplog.at_level(logging.WARNING):
        Checkpointer(model, str(tmp_path), fine_tune=True).resume_or_load(path, resume=False)
    assert not caplog.records
    assert torch.equal(model.state_dict()["criterion.empty_weight"], torch.ones(134))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True)
    )


def test_evaluation_refuses_other_classes(weights, tmp_path):
    _, path = weights
    message = r"weights\.pth: the weights do not fit the model: .*class_embed.weight is \(134, 4\)"
    with pytest.raises(CheckpointError, match=message):
        Checkpointer(Model(9), str(tmp_path), fine_tune=False).resume_or_load(path, resume=False)


def test_resuming_refuses_other_classes(weights, tmp_path):
    (tmp_path / "last_checkpoint").write_text("weights.pth")
    checkpointer = Checkpointer(Model(9), str(tmp_path), fine_tune=True)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        checkpointer.resume_or_load("", resume=True)


def test_other_shapes_are_an_error_with_names_and_shapes(weights, tmp_path):
    _, path = weights
    checkpointer = Checkpointer(Model(9, width=6), str(tmp_path), fine_tune=True)
    with pytest.raises(CheckpointError) as error:
        checkpointer.resume_or_load(path, resume=False)
    message = str(error.value)
    assert "backbone.weight is (4, 3) in the checkpoint, (6, 3) in the model" in message
    assert message.count(" in the checkpoint, ") == 5


def test_many_shapes_are_counted(tmp_path):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    path = tmp_path / "weights.pth"
    state = {key: torch.zeros(3) for key in model.state_dict()}
    model.append(nn.Linear(2, 2))
    torch.save({"model": {**state, "4.weight": torch.zeros(2, 2)}}, path)
    with pytest.raises(CheckpointError, match="; and 3 more"):
        Checkpointer(model, str(tmp_path), fine_tune=True).resume_or_load(str(path), resume=False)
