"""Properties of Swin that the golden models do not show."""

import pytest
import torch
from detectron2.modeling import build_backbone
from torchvision.ops import StochasticDepth

from proscale.modeling.backbones.swin import shifted_window_mask, to_windows


@pytest.fixture
def build(small_cfg):
    def build(*overrides):
        small_cfg.merge_from_list(list(overrides))
        torch.manual_seed(0)
        return build_backbone(small_cfg)

    return build


def test_any_input_size(build):
    backbone = build().eval()
    shapes = backbone.output_shape()
    assert {name: spec.stride for name, spec in shapes.items()} == {
        "res2": 4, "res3": 8, "res4": 16, "res5": 32,
    }  # fmt: skip
    features = backbone(torch.randn(1, 3, 61, 93))
    for name, spec in shapes.items():
        size = (-(-61 // spec.stride), -(-93 // spec.stride))
        assert features[name].shape == (1, spec.channels, *size)


def test_shift_does_not_join_far_sides():
    height, width, window = 8, 12, 4
    mask = shifted_window_mask(height, width, window, torch.zeros(()))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((rows, columns), -1).roll((-2, -2), (0, 1))
    places = to_windows(places[None], window)
    distance = (places[:, :, None] - places[:, None]).abs().amax(-1)
    # Tokens of one window before the shift was undone are near each other, all others far.
    assert torch.equal(mask == 0, distance < window)


def test_checkpointing_changes_no_gradient(build):
    image = torch.randn(1, 3, 64, 64)
    gradients = []
    for recompute in (False, True):
        backbone = build("MODEL.SWIN.USE_CHECKPOINT", recompute).train()
        sum(feature.square().mean() for feature in backbone(image).values()).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_absolute_position_embedding_is_resized(build):
    backbone = build("MODEL.SWIN.APE", True, "MODEL.SWIN.PRETRAIN_IMG_SIZE", 32).eval()
    assert backbone.absolute_pos_embed.shape == (1, 16, 8, 8)
    image = torch.randn(1, 3, 48, 80)
    before = backbone(image)["res2"]
    torch.nn.init.zeros_(backbone.absolute_pos_embed)
    assert not torch.allclose(before, backbone(image)["res2"])


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = StochasticDepth(0.25, "row")
    out = drop(torch.ones(4000, 3))
    torch.testing.assert_close(out.unique(), torch.tensor([0, 1 / 0.75]))
    assert torch.equal(out.amin(1), out.amax(1))
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(torch.ones(5)), torch.ones(5))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NUM_HEADS", [1, 2, 4], "num_heads .* one number for each"),
        ("NUM_HEADS", [1, 2, 5, 4], "num_heads .* dividing their widths"),
        ("OUT_FEATURES", ["res1"], "out_features .* expected one or more of .*res2"),
    ],
)
def test_wrong_arguments_are_refused(build, key, value, message):
    with pytest.raises(ValueError, match=message):
        build(f"MODEL.SWIN.{key}", value)
