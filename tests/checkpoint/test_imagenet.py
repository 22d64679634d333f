"""ImageNet classifiers as backbones: features equal to torchvision's and timm's, random weights."""

import pytest
import timm
import torch
import torchvision
from detectron2.modeling import build_backbone
from torch.nn import functional as F

from proscale.checkpoint import convert, convert_state_dict

RESNETS = {"resnet18": (18, 64), "resnet50": (50, 256), "resnet101": (101, 256)}


@pytest.fixture
def image():
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def resnet_cfg(cfg):
    """Returns a function: name → configuration of that ResNet."""

    def make(name: str):
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        node = cfg.MODEL.RESNETS
        node.DEPTH, node.RES2_OUT_CHANNELS = RESNETS[name]
        node.STRIDE_IN_1X1 = False
        node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
        return cfg

    return make


@pytest.fixture
def swin(small_cfg, fill):
    """A Swin Transformer with weights by name, in windows of 7, and its tensors' full names."""
    backbone = build_backbone(small_cfg).eval()
    fill.fill_state_dict(backbone)
    return backbone, {f"backbone.{name}": x for name, x in backbone.state_dict().items()}


def load(backbone, state) -> set[str]:
    """Names of the backbone's that are not in ``state``."""
    state = {name.removeprefix("backbone."): x for name, x in state.items()}
    return set(backbone.load_state_dict(state, strict=False).missing_keys)


def same(got, want):
    assert want.std() > 1e-6
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("name", RESNETS)
def test_features_equal_torchvision(name, resnet_cfg, fill, image):
    theirs = torchvision.models.get_model(name).eval()
    fill.fill_state_dict(theirs)
    converted = convert(theirs.state_dict())
    assert converted.source == "torchvision"
    assert converted.unknown == ["fc.weight", "fc.bias"]
    assert converted.settings["MODEL.RESNETS.STRIDE_IN_1X1"] is False
    backbone = build_backbone(resnet_cfg(name)).eval()
    assert not load(backbone, converted.state_dict)

    with torch.no_grad():
        ours = backbone(image)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for stage in range(1, 5):
            x = theirs.get_submodule(f"layer{stage}")(x)
            same(ours[f"res{stage + 1}"], x)

    back = convert_state_dict(
        {k: v for k, v in converted.state_dict.items() if k.startswith("backbone.")},
        to="torchvision",
    )
    assert back.keys() == theirs.state_dict().keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(back[name], theirs.state_dict()[name]) for name in back)


def test_detectron2_names_are_those_without_prefix(resnet_cfg):
    ours = {
        f"backbone.{k}": v for k, v in build_backbone(resnet_cfg("resnet50")).state_dict().items()
    }
    theirs = convert_state_dict(ours, to="detectron2")
    assert theirs.keys() == {name.removeprefix("backbone.") for name in ours}
    assert convert(theirs).source == "detectron2"
    assert convert_state_dict(theirs).keys() == ours.keys()


def test_features_equal_timm_swin(swin):
    backbone, _ = swin
    theirs = timm.models.swin_transformer.SwinTransformer(
        embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 4)
    ).eval()
    converted = convert(theirs.state_dict())
    assert converted.source == "timm"
    assert set(converted.unknown) == {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}
    # What only a backbone has: the norms of its outputs.
    missing = load(backbone, converted.state_dict)
    assert {name.partition(".")[0] for name in missing} == {f"norm{i}" for i in range(4)}
    for stage in range(4):
        backbone.get_submodule(f"norm{stage}").reset_parameters()
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = backbone(image)
        intermediates = theirs.forward_intermediates(image, intermediates_only=True)
        for name, want in zip(ours, intermediates, strict=True):
            normed = F.layer_norm(want.permute(0, 2, 3, 1), (want.shape[1],)).permute(0, 3, 1, 2)
            same(ours[name], normed)


@pytest.mark.parametrize(
    ("scheme", "prefix"), [("microsoft", ""), ("moby", "encoder."), ("timm", "")]
)
def test_swin_there_and_back(swin, scheme, prefix):
    _, ours = swin
    ours = {name: x for name, x in ours.items() if not name.startswith("backbone.norm")}
    theirs = convert_state_dict(ours, to=scheme)
    merging = (
        "layers.1.downsample.norm.bias" if scheme == "timm" else "layers.0.downsample.norm.bias"
    )
    assert prefix + merging in theirs
    assert (prefix + "layers.0.blocks.0.attn.relative_position_index" in theirs) == (
        scheme != "timm"
    )
    back = convert({"model": theirs})
    assert back.source == scheme
    assert back.state_dict.keys() == ours.keys()
    assert all(torch.equal(back.state_dict[name], x) for name, x in ours.items())


def test_moby_takes_the_network_trained_by_gradients(swin):
    _, ours = swin
    ours = {name: x for name, x in ours.items() if not name.startswith("backbone.norm")}
    online = convert_state_dict(ours, to="moby")
    momentum = {name.replace("encoder.", "encoder_k.", 1): x + 1 for name, x in online.items()}
    rest = {"projector.linear_hidden.0.weight": torch.ones(2, 2), "queue1": torch.ones(2)}
    converted = convert({"model": {**momentum, **online, **rest}})
    assert all(torch.equal(converted.state_dict[name], x) for name, x in ours.items())
    assert set(converted.unknown) == {*momentum, *rest}
