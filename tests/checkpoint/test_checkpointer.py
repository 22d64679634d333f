"""Weights of other naming schemes and other shapes, and the report of mismatches."""

import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone
from torch import nn

from proscale.checkpoint import Checkpointer, convert_state_dict, write_checkpoint
from proscale.checkpoint.checkpointer import (
    CLASS_LAYER,
    Mismatch,
    describe_class_layer,
    describe_mismatches,
    has_other_classes,
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
        Checkpointer(model).load(str(file))
    for name, tensor in backbone(trained).items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert "sem_seg_head.other.{bias, weight}" in caplog.text  # not found in the file
    assert "head.weight" in caplog.text  # not used


def test_own_checkpoints_keep_what_is_beside_the_model(trained, tmp_path):
    writer = Checkpointer(trained, str(tmp_path))
    writer.save("model_0000001", iteration=1)
    model = Segmenter()
    rest = Checkpointer(model).load(str(tmp_path / "model_0000001.pth"))
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
        Checkpointer(Segmenter()).load(str(file))


def test_tensors_of_other_shapes_fit_nothing(trained, tmp_path):
    file = tmp_path / "wide.pth"
    state = {name: tensor[None] for name, tensor in trained.state_dict().items()}
    write_checkpoint(file, state, container="model")
    with pytest.raises(CheckpointError, match="fits the model"):
        Checkpointer(Segmenter()).load(str(file))


def test_untrusted_pickles_are_not_run(trained, tmp_path):
    trace = tmp_path / "trace"

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    content = {"model": trained.state_dict(), "meta": Harmful()}
    torch.save(content, tmp_path / "w.pth")
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    (tmp_path / "last_checkpoint").write_text("w.pth")
    checkpointer = Checkpointer(Segmenter(), str(tmp_path))
    for load in (
        lambda: checkpointer.load(str(tmp_path / "w.pth")),
        lambda: checkpointer.load(str(tmp_path / "w.pkl")),
        lambda: checkpointer.resume_or_load("", resume=True),
    ):
        with pytest.raises(CheckpointError, match=r"because it has posix\.mkdir in it"):
            load()
    assert not trace.exists()
    Checkpointer(Segmenter(), trust=True).load(str(tmp_path / "w.pkl"))
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
    Checkpointer(resnet).load(str(path))
    assert torch.equal(resnet.backbone.stem.conv1.weight, torch.full((64, 3, 7, 7), 2.0))


def test_counted_batches_are_not_told_of(resnet, tmp_path, caplog):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    with caplog.at_level(logging.WARNING):
        Checkpointer(resnet).load(str(path))
    assert "fc.{bias, weight}" in caplog.text
    assert "num_batches_tracked" not in caplog.text


def test_no_weights_is_no_error():
    assert Checkpointer(Segmenter()).load("") == {}


WEIGHT = Mismatch("sem_seg_head.predictor.class_embed.weight", (134, 256), (10, 256))
BIAS = Mismatch("sem_seg_head.predictor.class_embed.bias", (134,), (10,))
LOSS = Mismatch("criterion.empty_weight", (134,), (10,))
OTHER = Mismatch("backbone.stem.weight", (64, 3), (32, 3))


@pytest.mark.parametrize(
    ("mismatches", "expected"),
    [
        ([WEIGHT, BIAS, LOSS], True),
        ([], False),
        ([WEIGHT, OTHER], False),
        ([WEIGHT._replace(expected=(10, 128))], False),
    ],
)
def test_only_the_class_layer_may_differ_in_its_first_dimension(mismatches, expected):
    assert has_other_classes(mismatches) is expected


def test_descriptions():
    assert describe_class_layer([LOSS, BIAS, WEIGHT]) == (
        "the checkpoint has a class layer of 134 outputs, this model one of 10: "
        "sem_seg_head.predictor.class_embed starts afresh, all else is loaded"
    )
    told = describe_mismatches([OTHER] * 7)
    assert told.startswith(
        "backbone.stem.weight is (64, 3) in the checkpoint, (32, 3) in the model"
    )
    assert told.endswith("; and 2 more")


def test_names_are_those_of_the_models():
    folder = Path(__file__).parents[1] / "golden" / "state_dicts"
    names = set(json.loads((folder / "proscale_r50_333.json").read_text()))
    assert {name for name in CLASS_LAYER if "class_embed" in name} <= names


class Classifier(nn.Module):
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
    model = Classifier(133)
    path = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, path)
    return model, str(path)


def test_fine_tuning_renews_the_class_layer_and_says_so_in_one_line(weights, tmp_path, caplog):
    trained, path = weights
    model = Classifier(9)
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
    model = Classifier(133)
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
        Checkpointer(Classifier(9), str(tmp_path), fine_tune=False).resume_or_load(
            path, resume=False
        )


def test_resuming_refuses_other_classes(weights, tmp_path):
    (tmp_path / "last_checkpoint").write_text("weights.pth")
    checkpointer = Checkpointer(Classifier(9), str(tmp_path), fine_tune=True)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        checkpointer.resume_or_load("", resume=True)


def test_other_shapes_are_an_error_with_names_and_shapes(weights, tmp_path):
    _, path = weights
    checkpointer = Checkpointer(Classifier(9, width=6), str(tmp_path), fine_tune=True)
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
