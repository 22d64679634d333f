"""Outputs and gradients of the pixel decoders against the published implementations'."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

CASES = (
    "pixel_decoder_mask2former",
    "pixel_decoder_proscale_111",
    "pixel_decoder_proscale_111_conv_mask_features",
    "pixel_decoder_proscale_111_no_recalibration",
    "pixel_decoder_proscale_122_conv_recalibration",
    "pixel_decoder_proscale_213_residual",
)


def build(cfg, meta: dict):
    args, node = meta["args"], cfg.MODEL.SEM_SEG_HEAD
    node.CONVS_DIM, node.MASK_DIM, node.NORM = args["conv_dim"], args["mask_dim"], args["norm"]
    node.COMMON_STRIDE = args["common_stride"]
    node.TRANSFORMER_ENC_LAYERS = args["transformer_enc_layers"]
    node.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = args["transformer_in_features"]
    cfg.MODEL.MASK_FORMER.NHEADS = args["transformer_nheads"]
    cfg.MODEL.MASK_FORMER.DROPOUT = args["transformer_dropout"]
    name = "MSDeformAttnPixelDecoder"
    if meta["kind"] == "proscale":
        name, node = "PROSCALE", cfg.MODEL.PROSCALE
        node.PROSCALE_NUM_LAYERS = args["pyramid_num_layers"]
        node.RESIDUAL, node.EXCITE_TEMP = args["residual"], args["excite_temp"]
        node.IS_EXCITE_CONV = args["is_excite_conv"]
        node.MASK_OUTPUT_OPS = args["mask_output_ops"]
    shapes = {k: ShapeSpec(channels=c, stride=s) for k, (c, s) in meta["shapes"].items()}
    return SEM_SEG_HEADS_REGISTRY.get(name)(cfg, shapes)


@pytest.mark.parametrize("case", CASES)
def test_equals_published(case, cfg, golden, fill):
    expected = golden(case)
    meta = expected.meta
    decoder = build(cfg, meta)
    assert {k: list(v.shape) for k, v in decoder.state_dict().items()} == meta["state"]
    fill.fill_state_dict(decoder)

    features = {}
    for name, (channels, stride) in meta["shapes"].items():
        size = (math.ceil(meta["height"] / stride), math.ceil(meta["width"] / stride))
        shape = (meta["batch"], channels, *size)
        features[name] = fill.random_input(f"{case}.{name}", shape).requires_grad_()
    mask_features, coarsest, levels = decoder.forward_features(features)

    torch.testing.assert_close(coarsest, levels[0])
    outputs = {"mask": mask_features} | {f"ms{i}": level for i, level in enumerate(levels)}
    total = 0
    for name, output in outputs.items():
        reference = expected.mask_features if name == "mask" else getattr(expected, name)
        torch.testing.assert_close(output, reference, rtol=1e-3, atol=1e-4)
        total = total + (output * fill.random_input(f"{case}.g{name}", tuple(output.shape))).sum()

    total.backward()
    offsets = decoder.transformer.encoder.layers[0].self_attn.sampling_offsets.weight
    torch.testing.assert_close(offsets.grad, expected.grad_sampling_offsets0, rtol=1e-3, atol=1e-4)
    for name, feature in features.items():
        reference = getattr(expected, f"grad_{name}")
        torch.testing.assert_close(feature.grad, reference, rtol=1e-3, atol=1e-4)
