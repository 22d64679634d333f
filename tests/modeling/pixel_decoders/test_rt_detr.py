"""RT-M2F: the published hybrid encoder's numbers, any size and batch, and branches that fuse."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from proscale.modeling.pixel_decoders.rt_detr import (
    HybridEncoder,
    HybridEncoderArguments,
    RepVGGBlock,
    cell_encoding,
)
from proscale.ops.fused import FusibleConvolution, fuse_for_inference
from proscale.ops.tracing import reference_operators

NAME = "RTDETRPixelDecoder"
NODE = "MODEL.RT_DETR_ENCODER."
SHAPES = {f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in (2, 3, 4, 5)}


@pytest.fixture
def decoder(cfg, fill):
    """`decoder("MODEL.KEY", value, …)`: a small decoder in evaluation mode, weights by name."""
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.RT_DETR_ENCODER.HIDDEN_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 16
    cfg.MODEL.RT_DETR_ENCODER.NHEADS = 4
    cfg.MODEL.RT_DETR_ENCODER.DIM_FEEDFORWARD = 48

    def build(*overrides):
        cfg.merge_from_list(list(overrides))
        model = SEM_SEG_HEADS_REGISTRY.get(NAME)(cfg, SHAPES).eval()
        fill.fill_state_dict(model)
        return model

    return build


def make_features(height=64, width=96, batch=2):
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(
            *(
                batch,
                spec.channels,
                math.ceil(height / spec.stride),
                math.ceil(width / spec.stride),
            ),
            generator=generator,
        )
        for name, spec in SHAPES.items()
    }


@torch.no_grad()
def outputs(decoder, features):
    mask_features, _, levels = decoder.forward_features(features)
    return [mask_features, *levels]


def assert_equal_to_golden(found, expected, gradient=False):
    """Relative to the tensor's spread."""
    error = (found - expected).abs().max() / expected.std()
    assert error < (5e-3 if gradient else 1e-3)


def state_of(module):
    state = module.state_dict()
    return {k: list(v.shape) for k, v in state.items() if not k.endswith("num_batches_tracked")}


def test_hybrid_encoder_equals_published(golden, fill):
    case = "hybrid_encoder"
    expected = golden(case)
    meta, args = expected.meta, expected.meta["args"]
    # Theirs counts levels from the finest one.
    levels = ["res5", "res4", "res3"]
    encoder = HybridEncoder(
        levels,
        HybridEncoderArguments(
            d_model=args["hidden_dim"],
            num_layers=args["num_layers"],
            n_heads=args["nheads"],
            d_ffn=args["dim_feedforward"],
            attended=[levels[2 - index] for index in args["use_encoder_idx"]],
            expansion=args["expansion"],
            norm="BN",
        ),
    ).train(args["train"])
    assert state_of(encoder) == meta["state"]
    fill.fill_state_dict(encoder)
    inputs = [
        fill.random_input(
            f"{case}.s{i}",
            (meta["batch"], args["hidden_dim"], meta["height"] >> i, meta["width"] >> i),
        ).requires_grad_()
        for i in (5, 4, 3)
    ]
    total = 0
    for i, output in zip((5, 4, 3), encoder(inputs), strict=True):
        assert_equal_to_golden(output, getattr(expected, f"out{i}"))
        total = total + (output * fill.random_input(f"{case}.gout{i}", output.shape)).sum()
    total.backward()
    for i, tensor in zip((5, 4, 3), inputs, strict=True):
        assert_equal_to_golden(tensor.grad, getattr(expected, f"grad_s{i}"), gradient=True)


def test_pixel_decoder_equals_published(cfg, golden, fill):
    case = "pixel_decoder_rt"
    expected = golden(case)
    meta, args = expected.meta, expected.meta["args"]
    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.RT_DETR_ENCODER
    head.CONVS_DIM = node.HIDDEN_DIM = args["conv_dim"]
    head.MASK_DIM, head.NORM, head.COMMON_STRIDE = (
        args[key] for key in ("mask_dim", "norm", "common_stride")
    )
    node.NHEADS, node.DIM_FEEDFORWARD = args["transformer_nheads"], args["dim_feedforward"]
    node.NUM_LAYERS, node.EXPANSION = args["num_layers"], args["expansion"]
    cfg.MODEL.PROSCALE.MASK_OUTPUT_OPS = args["mask_output_ops"]
    shapes = {k: ShapeSpec(channels=c, stride=s) for k, (c, s) in meta["shapes"].items()}
    decoder = SEM_SEG_HEADS_REGISTRY.get(NAME)(cfg, shapes).eval()
    assert state_of(decoder) == meta["state"]
    fill.fill_state_dict(decoder)
    features = {
        name: fill.random_input(
            f"{case}.{name}",
            (meta["batch"], channels, meta["height"] // stride, meta["width"] // stride),
        ).requires_grad_()
        for name, (channels, stride) in meta["shapes"].items()
    }
    mask_features, coarsest, levels = decoder.forward_features(features)
    assert coarsest is levels[0]
    total = 0
    found = {"mask_features": mask_features} | {f"ms{i}": x for i, x in enumerate(levels)}
    for name, output in found.items():
        assert_equal_to_golden(output, getattr(expected, name))
        total = total + (output * fill.random_input(f"{case}.g{name}", output.shape)).sum()
    total.backward()
    for name, feature in features.items():
        assert_equal_to_golden(feature.grad, getattr(expected, f"grad_{name}"), gradient=True)


@pytest.mark.parametrize("size", [(64, 96), (97, 130), (33, 1), (31, 200)], ids=str)
def test_any_size_and_batched_as_single(decoder, size):
    model, features = decoder(), make_features(*size)
    batched = outputs(model, features)
    strides = [4, 32, 16, 8]
    assert [tuple(x.shape[-2:]) for x in batched] == [
        tuple(math.ceil(side / stride) for side in size) for stride in strides
    ]
    for index in range(2):
        single = outputs(model, {k: x[index : index + 1] for k, x in features.items()})
        for a, b in zip(batched, single, strict=True):
            torch.testing.assert_close(a[index : index + 1], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("levels", "attended"),
    [(["res5"], []), (["res4", "res5"], ["res4", "res5"]), ([*SHAPES], ["res5"])],
    ids=str,
)
def test_any_levels(decoder, levels, attended):
    model = decoder(
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", levels,
        NODE + "USE_ENCODER_LEVELS", attended,
        NODE + "NUM_LAYERS", 2,
    )  # fmt: skip
    assert len(model.hybrid_encoder.encoder) == len(attended)
    sizes = [(16, 24), (2, 3), (4, 6), (8, 12)]
    assert [tuple(x.shape[-2:]) for x in outputs(model, make_features())] == sizes


def test_expansion_narrows_the_blocks(decoder):
    assert not any("conv3" in name for name in decoder().state_dict())
    state = decoder(NODE + "EXPANSION", 0.5).state_dict()
    block = "hybrid_encoder.fpn_blocks.0."
    assert state[block + "conv1.conv.weight"].shape == (16, 64, 1, 1)
    assert state[block + "conv3.conv.weight"].shape == (32, 16, 1, 1)


def test_light_pixel_embedding_is_the_default(decoder):
    assert not hasattr(decoder().layer_1, "weight")
    assert decoder("MODEL.PROSCALE.MASK_OUTPUT_OPS", "conv").layer_1.weight.shape[-1] == 3


@pytest.mark.parametrize("kind", ["BN", "SyncBN", "FrozenBN"])
def test_norms(decoder, kind):
    model = decoder(NODE + "NORM", kind).train()
    mean = model.hybrid_encoder.lateral_convs[0].norm.running_mean
    before = mean.clone()
    sum(x.sum() for x in model.forward_features(make_features())[2]).backward()
    # Statistics of the batch are taken up unless they are frozen.
    assert torch.equal(mean, before) == (kind == "FrozenBN")
    parameters = {name for name, p in model.named_parameters() if "hybrid_encoder" in name}
    assert ("hybrid_encoder.lateral_convs.0.norm.weight" in parameters) == (kind != "FrozenBN")
    for name in parameters:
        assert model.get_parameter(name).grad is not None, name


@pytest.mark.parametrize("expansion", [1.0, 0.5])
def test_fused_branches_and_norms_compute_the_same(decoder, expansion):
    model, features = decoder(NODE + "EXPANSION", expansion), make_features(97, 130)
    with reference_operators():
        expected = outputs(model, features)
    names = list(model.state_dict())
    fused = fuse_for_inference(model)
    for found in (outputs(model, features), outputs(fused, features)):
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() < 1e-5 * b.abs().max()
    # The model is as it was; of the copy, all else is shared.
    assert list(model.state_dict()) == names
    assert fused.mask_features.weight is model.mask_features.weight
    kept = [module for module in fused.modules() if isinstance(module, FusibleConvolution)]
    assert not kept
    assert not any("norm" in name for name, _ in fused.hybrid_encoder.lateral_convs.named_buffers())


def test_fused_block_is_one_convolution_with_bias():
    block = RepVGGBlock(8, "BN").eval()
    convolution = block.fuse().convolution
    assert convolution.weight.shape == (8, 8, 3, 3)
    assert convolution.bias.shape == (8,)
    assert not any(p.requires_grad for p in convolution.parameters())


def test_a_training_block_is_not_fused():
    block, x = RepVGGBlock(8, "BN").train(), torch.randn(2, 8, 5, 6)
    expected = torch.nn.functional.silu(block.conv1(x) + block.conv2(x))
    torch.testing.assert_close(block(x), expected)


def test_folding_has_the_gradients_of_the_branches(decoder):
    # Rounding in float32 tips which cell is the maximum of its neighbours.
    features, grads = {name: x.double() for name, x in make_features().items()}, []
    for folded in (False, True):
        model = decoder(NODE + "NORM", "FrozenBN").double()
        if folded:
            mask_features, *_ = model.forward_features(features)
        else:
            with reference_operators():
                mask_features, *_ = model.forward_features(features)
        mask_features.square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(decoder, dtype):
    model, features = decoder(), make_features()
    expected = outputs(model, features)
    with torch.autocast("cpu", dtype):
        found = outputs(model, features)
    assert found[0].dtype == dtype
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b).abs().max() < 0.1 * b.abs().max()


def test_encoding_equals_its_definition():
    height, width, channels = 3, 5, 12
    encoding = cell_encoding(height, width, channels).view(height, width, channels)
    for row in range(height):
        for column in range(width):
            for k in range(3):
                frequency = 10000 ** -(k / 3)
                expected = (
                    *(math.sin(row * frequency), math.cos(row * frequency)),
                    *(math.sin(column * frequency), math.cos(column * frequency)),
                )
                for quarter, value in enumerate(expected):
                    assert abs(encoding[row, column, 3 * quarter + k] - value) < 1e-6


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("NHEADS", 5, "d_model is 32: expected multiples of 4 and of n_heads, 5"),
        ("NORM", "GN", "norm is 'GN': expected BN, SyncBN, FrozenBN"),
        ("EXPANSION", 0.0, "expansion is 0.0: expected numbers above 0"),
        ("USE_ENCODER_LEVELS", ["res2"], r"attended is \['res2'\]: expected levels of"),
    ],
)
def test_wrong_arguments_are_refused(decoder, key, value, expected):
    with pytest.raises(ValueError, match=expected):
        decoder(NODE + key, value)
