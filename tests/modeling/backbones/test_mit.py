"""Mix Transformer: equal to the published one, any size, merging changed on a built model."""

import pytest
import torch
from detectron2.modeling import build_backbone
from torch import Tensor

from proscale.modeling.backbones import mit
from proscale.modeling.backbones.token_merging import BipartiteSoftMatching
from proscale.ops import fused

CASES = (
    "none",
    "none_odd",
    "none_downsample",
    "bsm_hq",
    "bsm_fast",
    "n2d_2x2",
    "n1d_q2",
    "mixed",
)


@pytest.fixture
def build(cfg):
    """`build(KEY, value, …)`: a small backbone, keys below `MODEL.MIT`."""

    def build(*overrides):
        cfg.MODEL.BACKBONE.NAME = "MixVisionTransformer"
        node = cfg.MODEL.MIT
        node.EMBED_DIM, node.DEPTHS, node.NUM_HEADS = 16, [2, 1, 2, 1], [1, 2, 4, 8]
        keys, values = overrides[::2], overrides[1::2]
        for key, value in zip(keys, values, strict=True):
            setattr(node, key, value)
        torch.manual_seed(0)
        return build_backbone(cfg)

    return build


def published_weights(fill, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The weights of a golden case under this project's names."""
    weights = {}
    for name, shape in shapes.items():
        tensor = torch.from_numpy(fill.fill_tensor(name, tuple(shape)))
        _, stage, part, *rest = name.split(".")
        rest = ".".join(rest)
        if part == "0":
            name = f"patch_embed.{rest}".replace("projection", "proj")
        elif part == "2":
            name = f"norm.{rest}"
        else:
            name = f"blocks.{rest}".replace("attn.attn.out_proj", "attn.proj")
            for theirs, ours in (("0", "fc1"), ("1", "dwconv"), ("4", "fc2")):
                name = name.replace(f"ffn.layers.{theirs}", f"mlp.{ours}")
            if "fc1.weight" in name or "fc2.weight" in name:
                tensor = tensor[:, :, 0, 0]
        name = f"stages.{stage}.{name}"
        if "in_proj" in name:
            dim = len(tensor) // 3
            for half, part in (("q", tensor[:dim]), ("kv", tensor[dim:])):
                weights[name.replace("attn.in_proj_", f"{half}.")] = part
        else:
            weights[name] = tensor
    return weights


@pytest.mark.parametrize("case", CASES)
def test_equals_published(case, build, golden, fill):
    expected = golden(f"mit_{case}")
    meta = expected.meta
    backbone = build("TOKEN_MERGING", meta["tome_cfg"], "DOWNSAMPLE", meta["down_sample"]).eval()
    backbone.load_state_dict(published_weights(fill, meta["state"]))
    images = fill.random_input(f"mit_{case}", (meta["batch"], 3, meta["height"], meta["width"]))
    with torch.no_grad():
        features = backbone(images)
    for stage, feature in enumerate(features.values()):
        torch.testing.assert_close(
            feature, getattr(expected, f"stage{stage}"), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    ("variant", "parameters"),
    # SegFormer's table 6 says 3.4, 13.1, 24.2, 44.0, 60.8 and 81.4 million.
    [
        ("b0", 3_319_392),
        ("b1", 13_151_424),
        ("b2", 24_196_288),
        ("b3", 44_072_128),
        ("b4", 60_842_688),
        ("b5", 81_443_008),
    ],
)
def test_variants_have_their_size(variant, parameters, build):
    with torch.device("meta"):
        backbone = build("VARIANT", variant)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters


PRESETS = ("none", "bsm_hq", "bsm_fast", "n2d_2x2")


@pytest.mark.parametrize("merging", PRESETS)
@pytest.mark.parametrize("downsample", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 70), (61, 93), (128, 64)])
def test_any_input_size(size, downsample, merging, build):
    backbone = build("TOKEN_MERGING", merging, "DOWNSAMPLE", downsample).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        features = backbone(images)
    for name, spec in backbone.output_shape().items():
        expected = tuple(-(-side // spec.stride) for side in size)
        assert features[name].shape == (2, spec.channels, *expected)
        assert features[name].isfinite().all()
    assert backbone.size_divisibility == (64 if downsample else 32)


def test_downsampling_is_nearest(build):
    images = torch.randn(1, 3, 64, 96)
    halved = torch.nn.functional.interpolate(images, scale_factor=0.5, mode="nearest")
    backbone = build().eval()
    expected = backbone(halved)
    backbone = build("DOWNSAMPLE", True).eval()
    assert [spec.stride for spec in backbone.output_shape().values()] == [8, 16, 32, 64]
    for name, feature in backbone(images).items():
        torch.testing.assert_close(feature, expected[name])


def test_merging_changes_on_a_built_model(build):
    images = torch.randn(1, 3, 128, 160)
    backbone = build("TOKEN_MERGING", "bsm_fast").eval()
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with torch.no_grad():
        fast = backbone(images)["res5"]
        backbone.set_token_merging("none")
        plain = backbone(images)["res5"]
        assert not torch.allclose(fast, plain)
        with pytest.raises(ValueError, match="stage 2: kv_sx is missing"):
            backbone.set_token_merging([{}, {"kv_mode": "bsm", "kv_r": 0.5}, {}, {}])
        assert torch.equal(backbone(images)["res5"], plain)
        # A ratio of zero merges nothing.
        zero = {f"{side}_{key}": 2 for side in ("q", "kv") for key in ("sx", "sy")}
        zero |= {"q_mode": "bsm", "q_r": 0.0, "kv_mode": "bsm", "kv_r": 0.0}
        backbone.set_token_merging([zero] * 4)
        assert torch.equal(backbone(images)["res5"], plain)
        backbone.set_token_merging("bsm_fast")
        assert torch.equal(backbone(images)["res5"], fast)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_images_of_a_batch_do_not_see_each_other(build):
    images = torch.randn(2, 3, 64, 96)
    for merging in PRESETS:
        backbone = build("TOKEN_MERGING", merging).eval()
        with torch.no_grad():
            together = backbone(images)["res5"]
            alone = torch.cat([backbone(image[None])["res5"] for image in images])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("merging", PRESETS)
def test_strips_and_layout_change_nothing(merging, build, monkeypatch):
    images = torch.randn(2, 3, 61, 93)
    backbone = build("TOKEN_MERGING", merging).eval()
    whole = {name: feature.detach() for name, feature in backbone(images).items()}
    strips = []
    monkeypatch.setattr(fused, "ROWS_BYTES", 2**16)
    original = mit.MixFeedForward._rows

    def rows_of(self, tokens, size, rows):
        strips.append(size)
        return original(self, tokens, size, rows)

    monkeypatch.setattr(mit.MixFeedForward, "_rows", rows_of)
    with torch.no_grad():
        features = backbone(images.to(memory_format=torch.channels_last))
    assert len(strips) > 4 * 2
    for name, feature in features.items():
        torch.testing.assert_close(feature, whole[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merging", PRESETS)
def test_trains_with_merging(merging, build):
    backbone = build("TOKEN_MERGING", merging, "DROP_PATH_RATE", 0.0).train()
    features = backbone(torch.randn(2, 3, 96, 128))
    sum(feature.square().mean() for feature in features.values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_drop_path_rises_to_its_rate(build):
    backbone = build("DROP_PATH_RATE", 0.5)
    rates = [block.drop_path.p for stage in backbone.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_norm_eps_reaches_all_norms(build):
    backbone = build("NORM_EPS", 1e-5)
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 4 * 2 + 6 * 2 + 5
    assert {norm.eps for norm in norms} == {1e-5}


@pytest.mark.parametrize(("reuse", "same"), [(1, False), (2, True)])
def test_matching_reuse_skips_matchings(reuse, same, build, monkeypatch):
    calls = []
    original = BipartiteSoftMatching.match

    def match(self, tokens, size):
        calls.append(size)
        return original(self, tokens, size)

    monkeypatch.setattr(BipartiteSoftMatching, "match", match)
    backbone = build("TOKEN_MERGING", "bsm_fast", "MATCHING_REUSE", reuse).eval()
    backbone(torch.randn(1, 3, 64, 64))
    # Depths 2, 1, 2, 1.
    assert len(calls) == (4 if same else 6)


# Shapes become constants of the trace.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*is deprecated")
@pytest.mark.parametrize("merging", ["bsm_fast", "n2d_2x2"])
def test_exports_and_traces(merging, build):
    backbone = build("TOKEN_MERGING", merging, "DEPTHS", [1, 1, 1, 1]).eval()
    example, images = torch.randn(2, 1, 3, 100, 132)
    with torch.no_grad():
        expected = backbone(images)["res5"]
        exported = torch.export.export(backbone, (example,)).module()
        traced = torch.jit.trace(backbone, example, strict=False, check_trace=False)
        for network in (exported, traced):
            torch.testing.assert_close(network(images)["res5"], expected)
        # Nothing of the exporter's stays behind.
        assert torch.equal(backbone(images)["res5"], expected)


def test_mixed_precision_merges_alike(build):
    images = torch.randn(1, 3, 128, 128)
    backbone = build("TOKEN_MERGING", "bsm_hq").eval()
    with torch.no_grad():
        expected = backbone(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = backbone(images)
    for name, feature in features.items():
        error = (feature.float() - expected[name]).norm() / expected[name].norm()
        assert error < 0.1, name


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DEPTHS", [2, 2, 2], "depths .* expected 4 whole numbers"),
        ("NUM_HEADS", [1, 2, 4, 0], "num_heads .* expected 4 whole numbers from 1"),
        ("SR_RATIOS", [8, 4, 2], "sr_ratios .* one for each stage"),
        ("MATCHING_REUSE", 0, "matching_reuse is 0: expected whole numbers from 1"),
        ("TOKEN_MERGING", "bsm", "token_merging is 'bsm': expected none"),
    ],
)
def test_wrong_arguments_are_refused(build, key, value, message):
    with pytest.raises(ValueError, match=message):
        build(key, value)


def test_list_replaces_the_default_in_a_configuration_file(cfg, tmp_path):
    file = tmp_path / "merged.yaml"
    file.write_text(
        "MODEL:\n"
        "  BACKBONE: {NAME: MixVisionTransformer}\n"
        "  MIT:\n"
        "    TOKEN_MERGING: [{}, {}, {q_mode: bsm, q_r: 0.5, q_sx: 2, q_sy: 2}, {q_mode: ~}]\n"
    )
    cfg.merge_from_file(str(file))
    backbone = build_backbone(cfg)
    backbone.eval()(torch.randn(1, 3, 64, 64))
    cfg.MODEL.MIT.TOKEN_MERGING[2]["q_r"] = 2
    with pytest.raises(ValueError, match="stage 3: q_r is 2"):
        build_backbone(cfg)


@pytest.mark.parametrize("reuse", [1, 2])
def test_checkpointing_changes_no_gradient(reuse, build):
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        keys = {"USE_CHECKPOINT": use_checkpoint, "TOKEN_MERGING": "bsm_hq", "DROP_PATH_RATE": 0.3}
        keys |= {"MATCHING_REUSE": reuse, "DEPTHS": [1, 3, 1, 1], "VARIANT": ""}
        backbone = build(*(item for pair in keys.items() for item in pair)).train()
        torch.manual_seed(1)
        sum(feature.square().mean() for feature in backbone(images).values()).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)
