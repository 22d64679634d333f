"""Lite-M2F: which tokens each layer updates, its options, and how it meets odd sizes and dtypes."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from proscale.modeling.pixel_decoders.deformable_encoder import DeformableAttention
from proscale.modeling.pixel_decoders.lite_detr import KeyAwareDeformableAttention
from proscale.ops import using_backend

SHAPES = {f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in (2, 3, 4, 5)}
HIGH, ALL = 2 * 3 + 4 * 6, 2 * 3 + 4 * 6 + 8 * 12  # tokens of an image of 64x96 pixels
KEY = "MODEL.LITE_DETR."
PLAIN = (KEY + "KEY_AWARE", False, KEY + "SMALL_FFN", False)


@pytest.fixture
def decoder(cfg):
    """`decoder("MODEL.KEY", value, …)`: a small Lite-M2F decoder, weights by a fixed seed."""
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 16
    cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 48
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 2
    cfg.MODEL.MASK_FORMER.NHEADS = 4
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.0
    cfg.MODEL.PROSCALE.MASK_OUTPUT_OPS = "conv"

    def build(*overrides, name="LiteDETRPixelDecoder"):
        cfg.merge_from_list(list(overrides))
        torch.manual_seed(0)
        return SEM_SEG_HEADS_REGISTRY.get(name)(cfg, SHAPES).eval()

    return build


def make_features(height=64, width=96, batch=2):
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(
            batch,
            spec.channels,
            -(-height // spec.stride),
            -(-width // spec.stride),
            generator=generator,
        )
        for name, spec in SHAPES.items()
    }


def outputs(decoder, features):
    with torch.no_grad():
        mask_features, _, levels = decoder.forward_features(features)
    return [mask_features, *levels]


def assert_equal(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize(
    ("num_layers", "num_blocks", "last_of_block"),
    [(6, 3, (1, 3, 5)), (6, 1, (5,)), (4, 2, (1, 3)), (2, 2, (0, 1))],
)
def test_fine_tokens_wait_for_the_last_layer_of_a_block(
    decoder, num_layers, num_blocks, last_of_block
):
    model = decoder(KEY + "NUM_LAYERS", num_layers, KEY + "NUM_BLOCKS", num_blocks)
    seen, made = [], []

    def record(layer, inputs, output):
        seen.append(inputs[0].clone())
        made.append(output.clone())

    for layer in model.transformer.encoder.layers:
        layer.register_forward_hook(record)
    outputs(model, make_features())
    for number in range(num_layers):
        # All tokens are values; those of the high levels, or all, ask.
        assert seen[number].shape[1] == ALL
        assert made[number].shape[1] == (ALL if number in last_of_block else HIGH)
        if number + 1 < num_layers:
            asked = made[number].shape[1]
            assert torch.equal(seen[number + 1][:, :asked], made[number])
            assert torch.equal(seen[number + 1][:, asked:], seen[number][:, asked:])


def test_one_high_level(decoder):
    model = decoder(KEY + "NUM_HIGH_LEVELS", 1)
    before = outputs(model, make_features())
    with torch.no_grad():
        # The first layer updates res5 alone: a feed-forward network that moves tokens by far.
        model.transformer.encoder.layers[0].norm2.bias += 10
    model.transformer.encoder.layers = model.transformer.encoder.layers[:1]
    model.transformer.encoder.updates_all = [False]
    moved = outputs(model, make_features())
    assert not torch.allclose(moved[1], before[1])
    projected = [
        project(make_features()[name])
        for project, name in zip(model.input_proj, ("res5", "res4", "res3"), strict=True)
    ]
    assert_equal(moved[2:], projected[1:])


def test_fine_tokens_have_a_feed_forward_network_of_their_own(decoder):
    model = decoder(KEY + "NUM_LAYERS", 1, KEY + "NUM_BLOCKS", 1)
    _, coarse, middle, finest = outputs(model, make_features())
    (layer,) = model.transformer.encoder.layers
    assert layer.linear12.weight.shape == layer.linear22.weight.shape == (32, 32)
    with torch.no_grad():
        layer.linear22.bias += torch.randn(32)
    changed = outputs(model, make_features())
    assert_equal(changed[1:3], (coarse, middle))
    assert not torch.allclose(changed[3], finest)
    with torch.no_grad():
        layer.linear2.bias += torch.randn(32)
    assert_equal(outputs(model, make_features())[3:], changed[3:])
    assert not torch.allclose(outputs(model, make_features())[1], coarse)


def test_plain_layers_of_all_tokens_are_mask2formers(decoder):
    lite = decoder(*PLAIN, KEY + "NUM_LAYERS", 2, KEY + "NUM_BLOCKS", 2)
    mask2former = decoder(name="MSDeformAttnPixelDecoder")
    mask2former.load_state_dict(lite.state_dict())
    assert_equal(
        outputs(lite, make_features()), outputs(mask2former, make_features()), rtol=0, atol=0
    )


def test_key_aware_attention_reads_the_places(decoder):
    model = decoder()
    names = {name for name, _ in model.transformer.encoder.layers[0].self_attn.named_parameters()}
    assert "query_proj.weight" in names
    assert "attention_weights.weight" not in names
    assert all(
        isinstance(layer.self_attn, KeyAwareDeformableAttention)
        for layer in model.transformer.encoder.layers
    )
    plain = decoder(KEY + "KEY_AWARE", False)
    assert all(
        type(layer.self_attn) is DeformableAttention for layer in plain.transformer.encoder.layers
    )


def test_light_pixel_embedding(decoder):
    names = {name for name, _ in decoder().named_parameters() if name.startswith("layer_1")}
    assert "layer_1.weight" in names
    light = decoder("MODEL.PROSCALE.MASK_OUTPUT_OPS", "maxpool")
    names = {name for name, _ in light.named_parameters() if name.startswith("layer_1")}
    assert names == {"layer_1.norm.weight", "layer_1.norm.bias"}


@pytest.mark.parametrize("size", [(64, 96), (97, 130), (33, 65), (40, 200)], ids=str)
@pytest.mark.parametrize("key_aware", [True, False])
def test_batched_equals_single_at_any_size(decoder, size, key_aware):
    model, features = decoder(KEY + "KEY_AWARE", key_aware), make_features(*size, batch=3)
    together = outputs(model, features)
    assert [tuple(x.shape[-2:]) for x in together] == [
        (-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 32, 16, 8)
    ]
    for image in range(3):
        alone = outputs(model, {name: maps[image : image + 1] for name, maps in features.items()})
        # A norm of few values magnifies errors of rounding.
        assert_equal(alone, [x[image : image + 1] for x in together], rtol=1e-3, atol=1e-4)


def test_backends_agree(decoder):
    model, features = decoder(), make_features(97, 130)
    with using_backend("reference"):
        expected = outputs(model, features)
    assert_equal(outputs(model, features), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision(decoder, dtype):
    model, features = decoder(), make_features()
    expected = outputs(model, features)
    with torch.autocast("cpu", dtype=dtype):
        found = outputs(model, features)
        mask_features, _, levels = model.train().forward_features(features)
    (mask_features.float().sum() + sum(level.float().square().sum() for level in levels)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert_equal([x.float() for x in found], expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("options", [(), PLAIN], ids=["default", "plain"])
def test_every_parameter_learns(decoder, options):
    model = decoder(*options).train()
    mask_features, _, levels = model.forward_features(make_features())
    weights = [torch.randn_like(x) for x in (mask_features, *levels)]
    sum((x * w).sum() for x, w in zip((mask_features, *levels), weights, strict=True)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("levels", "high"), [(["res4", "res5"], 1), (["res2", "res3", "res4", "res5"], 3)]
)
def test_any_number_of_levels(decoder, levels, high):
    key = "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"
    model = decoder(key, levels, KEY + "NUM_HIGH_LEVELS", high)
    sizes = [(16, 24), (2, 3), (4, 6), (8, 12)]
    assert [tuple(x.shape[-2:]) for x in outputs(model, make_features())] == sizes


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("NUM_LAYERS", 0, "num_layers is 0: expected whole numbers from 1"),
        ("NUM_BLOCKS", 4, "num_layers is 6: expected multiples of num_blocks, 4"),
        ("NUM_HIGH_LEVELS", 3, "num_high_levels is 3: expected fewer than the encoder's 3 levels"),
    ],
)
def test_wrong_arguments_are_refused(decoder, key, value, expected):
    with pytest.raises(ValueError, match=expected):
        decoder(KEY + key, value)
