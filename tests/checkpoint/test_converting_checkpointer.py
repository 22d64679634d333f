"""MODEL.WEIGHTS in other naming schemes, and what is said about what did not match."""

import logging
import os
import pickle

import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone
from torch import nn

from proscale.checkpoint import (
    ConvertingCheckpointer,
    convert_state_dict,
    write_checkpoint,
)
from proscale.errors import CheckpointError
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


def test_untrusted_pickles_are_not_run(trained, tmp_path):
    trace = tmp_path / "trace"

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    content = {"model": trained.state_dict(), "meta": Harmful()}
    torch.save(content, tmp_path / "w.pth")
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    (tmp_path / "last_checkpoint").write_text("w.pth")
    checkpointer = ConvertingCheckpointer(Segmenter(), str(tmp_path))
    for load in (
        lambda: checkpointer.load(str(tmp_path / "w.pth")),
        lambda: checkpointer.load(str(tmp_path / "w.pkl")),
        lambda: checkpointer.resume_or_load("", resume=True),
    ):
        with pytest.raises(CheckpointError, match=r"because it has posix\.mkdir in it"):
            load()
    assert not trace.exists()
    ConvertingCheckpointer(Segmenter(), trust=True).load(str(tmp_path / "w.pkl"))
    assert trace.exists()


class ResNetSegmenter(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.sem_seg_head = nn.Linear(1, 1)


@pytest.fixture
def resnet(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    return ResNetSegmenter(cfg)


@pytest.mark.parametrize("zoo", ["detectron2", "caffe2"])
def test_model_zoo_pickles(zoo, resnet, tmp_path):
    """Detectron2's files have names without a prefix, Caffe2's have their own."""
    names = {"detectron2": "stem.conv1.weight", "caffe2": "conv1_w"}
    arrays = {names[zoo]: np.full((64, 3, 7, 7), 2, np.float32)}
    content = {"model": arrays, "__author__": "me", "matching_heuristics": True}
    if zoo == "caffe2":
        content = {"blobs": {**arrays, "conv1_w_momentum": np.zeros(1)}}
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    ConvertingCheckpointer(resnet).load(str(path))
    assert torch.equal(resnet.backbone.stem.conv1.weight, torch.full((64, 3, 7, 7), 2.0))


def test_counted_batches_are_not_told_of(resnet, tmp_path, caplog):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    with caplog.at_level(logging.WARNING):
        ConvertingCheckpointer(resnet).load(str(path))
    assert "fc.{bias, weight}" in caplog.text
    assert "num_batches_tracked" not in caplog.text


def test_no_weights_is_no_error():
    assert ConvertingCheckpointer(Segmenter()).load("") == {}
