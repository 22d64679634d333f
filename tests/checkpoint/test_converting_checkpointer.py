"""MODEL.WEIGHTS in other naming schemes, and what is said about what did not match."""

import logging

import pytest
import torch
from torch import nn

from proscale.checkpoint import (
    CheckpointError,
    ConvertingCheckpointer,
    convert_state_dict,
    write_checkpoint,
)
from proscale.modeling.backbones import MixVisionTransformer


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = MixVisionTransformer(
            embed_dim=4, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]
        )
        self.sem_seg_head = nn.ModuleDict({"other": nn.Conv2d(4, 2, 1)})


@pytest.fixture
def trained(fill):
    model = Segmenter()
    fill.fill_state_dict(model)
    return model


def backbone(model):
    return {f"backbone.{k}": v.clone() for k, v in model.backbone.state_dict().items()}


@pytest.mark.parametrize("scheme", ["openmmlab", "nvidia", "huggingface", "transformers"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_loads_backbones_of_other_schemes(trained, scheme, suffix, tmp_path, caplog):
    file = tmp_path / f"weights{suffix}"
    state = convert_state_dict(backbone(trained), to=scheme)
    state["head.weight"] = torch.ones(1)
    write_checkpoint(file, state, container=None)

    model = Segmenter()
    with caplog.at_level(logging.WARNING):
        ConvertingCheckpointer(model).load(str(file))
    for name, tensor in backbone(trained).items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert "sem_seg_head.other.{bias, weight}" in caplog.text  # not found in the file
    assert "head.weight" in caplog.text  # not used


def test_own_checkpoints_keep_what_is_beside_the_model(trained, tmp_path):
    writer = ConvertingCheckpointer(trained, str(tmp_path))
    writer.save("model_0000001", iteration=1)
    model = Segmenter()
    rest = ConvertingCheckpointer(model).load(str(tmp_path / "model_0000001.pth"))
    assert rest == {"iteration": 1}
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(
            model.state_dict().values(), trained.state_dict().values(), strict=True
        )
    )


@pytest.mark.parametrize(
    "state", [{"features.0.weight": torch.ones(1)}, {"backbone.other": torch.ones(1)}]
)
def test_file_that_matches_nothing_is_an_error(state, tmp_path):
    file = tmp_path / "other.pth"
    write_checkpoint(file, state, container=None)
    with pytest.raises(CheckpointError, match=r"other\.pth: no tensor in it fits the model.*has "):
        ConvertingCheckpointer(Segmenter()).load(str(file))


def test_tensors_of_other_shapes_fit_nothing(trained, tmp_path):
    file = tmp_path / "wide.pth"
    state = {name: tensor[None] for name, tensor in trained.state_dict().items()}
    write_checkpoint(file, state, container="model")
    with pytest.raises(CheckpointError, match="fits the model"):
        ConvertingCheckpointer(Segmenter()).load(str(file))


def test_no_weights_is_no_error():
    assert ConvertingCheckpointer(Segmenter()).load("") == {}
