"""PRO-SCALE's options: each changes what it says, and wrong arguments are named."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

SHAPES = {f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in (2, 3, 4, 5)}


@pytest.fixture
def decoder(cfg):
    """`decoder("MODEL.KEY", value, …)`: a small PRO-SCALE decoder, weights by a fixed seed."""
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 16
    cfg.MODEL.MASK_FORMER.NHEADS = 4
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.0
    cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [1, 1, 1]
    cfg.MODEL.PROSCALE.EXCITE_TEMP = 1.0

    def build(*overrides, name="PROSCALE"):
        cfg.merge_from_list(list(overrides))
        torch.manual_seed(0)
        return SEM_SEG_HEADS_REGISTRY.get(name)(cfg, SHAPES).eval()

    return build


@pytest.fixture
def features():
    torch.manual_seed(1)
    return {
        name: torch.randn(2, spec.channels, 64 // spec.stride, 96 // spec.stride)
        for name, spec in SHAPES.items()
    }


def outputs(decoder, features):
    with torch.no_grad():
        mask_features, _, levels = decoder.forward_features(features)
    return [mask_features, *levels]


@pytest.mark.parametrize("layers", [[0, 0, 3], [3, 0, 0], [0, 2, 0], [0, 0, 0], [2, 1, 3]], ids=str)
def test_any_number_of_layers_in_any_stage(decoder, features, layers):
    model = decoder("MODEL.PROSCALE.PROSCALE_NUM_LAYERS", layers)
    sizes = [(16, 24), (2, 3), (4, 6), (8, 12)]
    assert [tuple(x.shape[-2:]) for x in outputs(model, features)] == sizes
    encoder_layers = model.transformer.encoder.layers
    expected = [stage for stage, count in enumerate(layers, 1) for _ in range(count)]
    assert [layer.self_attn.n_levels for layer in encoder_layers] == expected


def test_without_layers_tokens_pass_through_recalibrated(decoder, features):
    model = decoder("MODEL.PROSCALE.PROSCALE_NUM_LAYERS", [0, 0, 0])
    _, coarse, middle, finest = outputs(model, features)
    projected = [
        project(features[name])
        for project, name in zip(model.input_proj, ("res5", "res4", "res3"), strict=True)
    ]
    torch.testing.assert_close(finest, projected[2])
    assert not torch.allclose(coarse, projected[0])
    assert not torch.allclose(middle, projected[1])


def test_early_stages_do_not_see_finer_levels(decoder, features):
    model = decoder("MODEL.PROSCALE.RECALIBRATION", "none", "MODEL.PROSCALE.PROSCALE_NUM_LAYERS",
                    [2, 0, 0])  # fmt: skip
    before = outputs(model, features)
    features["res4"] = features["res4"] + 1
    after = outputs(model, features)
    torch.testing.assert_close(before[1], after[1])
    assert not torch.allclose(before[2], after[2])


def test_recalibration_key_and_published_key_remove_it(decoder, features):
    none = decoder("MODEL.PROSCALE.RECALIBRATION", "none")
    assert none.transformer.encoder.token_excite is None
    published = decoder(
        "MODEL.PROSCALE.RECALIBRATION", "released", "MODEL.PROSCALE.IS_EXCITE_CONV", None
    )
    assert published.transformer.encoder.token_excite is None
    for a, b in zip(outputs(none, features), outputs(published, features), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("convolution", [True, False])
def test_transposed_recalibration_gates_places(decoder, features, convolution):
    released = decoder("MODEL.PROSCALE.IS_EXCITE_CONV", convolution)
    transposed = decoder("MODEL.PROSCALE.RECALIBRATION", "transposed")
    transposed.load_state_dict(released.state_dict())
    assert not torch.allclose(outputs(released, features)[1], outputs(transposed, features)[1])

    # The definition, in maps: a gate for each place of res5 from res3 resized to it.
    excite = transposed.transformer.encoder.token_excite
    coarse, finest = (
        project(features[name])
        for project, name in zip(transposed.input_proj[::2], ("res5", "res3"), strict=True)
    )
    resized = torch.nn.functional.interpolate(finest, size=coarse.shape[-2:], mode="bilinear")
    weight = excite.ops.weight.view(1, -1, 1, 1)
    gate = ((resized * weight).sum(1, keepdim=True) + excite.ops.bias).sigmoid()
    gated = excite(
        coarse.flatten(2).transpose(1, 2),
        tuple(coarse.shape[-2:]),
        finest.flatten(2).transpose(1, 2),
        tuple(finest.shape[-2:]),
    )
    torch.testing.assert_close(gated, (coarse * gate).flatten(2).transpose(1, 2))


def test_residual_changes_stages_one_and_two_only(decoder, features):
    plain = decoder("MODEL.PROSCALE.PROSCALE_NUM_LAYERS", [0, 0, 2])
    residual = decoder("MODEL.PROSCALE.RESIDUAL", True)
    for a, b in zip(outputs(plain, features), outputs(residual, features), strict=True):
        torch.testing.assert_close(a, b)
    layers = ("MODEL.PROSCALE.PROSCALE_NUM_LAYERS", [1, 0, 0])
    residual = decoder(*layers)
    plain = decoder("MODEL.PROSCALE.RESIDUAL", False)
    assert not torch.allclose(outputs(residual, features)[1], outputs(plain, features)[1])


def test_light_pixel_embedding_has_no_kernel(decoder):
    names = {name for name, _ in decoder().named_parameters() if name.startswith("layer_1")}
    assert names == {"layer_1.norm.weight", "layer_1.norm.bias"}
    convolution = decoder("MODEL.PROSCALE.MASK_OUTPUT_OPS", "conv")
    assert convolution.layer_1.weight.shape == (32, 32, 3, 3)


@pytest.mark.parametrize("name", ["PROSCALE", "MSDeformAttnPixelDecoder"])
@pytest.mark.parametrize(
    ("levels", "layers", "pyramid"),
    [
        (["res4", "res5"], [1, 1], ["res2", "res3"]),
        (["res5"], [2], ["res2", "res3", "res4"]),
        (["res2", "res3", "res4", "res5"], [1, 1, 1, 1], []),
    ],
)
def test_any_number_of_levels(decoder, features, name, levels, layers, pyramid):
    model = decoder(
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", levels,
        "MODEL.PROSCALE.PROSCALE_NUM_LAYERS", layers,
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1,
        name=name,
    )  # fmt: skip
    assert model.pyramid_features == pyramid
    sizes = [(16, 24), (2, 3), (4, 6), (8, 12)]
    assert [tuple(x.shape[-2:]) for x in outputs(model, features)] == sizes


def test_widths_come_from_the_configuration(decoder):
    key = "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_"
    model = decoder(key + "DIM_FEEDFORWARD", 40, key + "N_POINTS", 3, key + "N_HEADS", 2)
    layer = model.transformer.encoder.layers[0]
    assert layer.linear1.out_features == 40
    assert (layer.self_attn.n_points, layer.self_attn.n_heads) == (3, 2)
    assert layer.self_attn.sampling_offsets.out_features == 2 * 1 * 3 * 2


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MODEL.PROSCALE.PROSCALE_NUM_LAYERS", [1, -1, 1], "num_layers .*one number from 0"),
        ("MODEL.PROSCALE.PROSCALE_NUM_LAYERS", [1, 1], "num_layers .*3 levels"),
        ("MODEL.PROSCALE.MASK_OUTPUT_OPS", "avgpool", "mask_output_ops .*maxpool or conv"),
        (
            "MODEL.PROSCALE.RECALIBRATION",
            "published",
            "recalibration .*transposed or none",
        ),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 36, "conv_dim .*multiples of 32"),
        ("MODEL.MASK_FORMER.NHEADS", 5, "d_model .*multiples of n_heads, 5"),
        ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS", 0, "n_points .*from 1"),
        ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD", -1, "d_ffn .*from 1"),
        (
            "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES",
            ["res3", "res4", "res6"],
            "transformer_in_features .*res2.*res5",
        ),
        ("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 2, "common_stride .*steps of two"),
    ],
)
def test_wrong_arguments_are_refused(decoder, key, value, expected):
    with pytest.raises(ValueError, match=expected):
        decoder(key, value)


def test_negative_encoder_layers_are_refused(decoder):
    with pytest.raises(ValueError, match="num_layers is -1: expected whole numbers from 0"):
        decoder("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", -1, name="MSDeformAttnPixelDecoder")
