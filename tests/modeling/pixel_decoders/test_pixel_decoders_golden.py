"""Outputs and gradients of the pixel decoders against the published implementations'."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

CASES = (
    "pixel_decoder_lite",
    "pixel_decoder_lite_plain",
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
    cfg.MODEL.MASK_FORMER.NHEADS = args["transformer_nheads"]
    cfg.MODEL.MASK_FORMER.DROPOUT = args.get("transformer_dropout", 0.0)
    levels = args.get("transformer_in_features", ["res3", "res4", "res5"])
    node.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = levels
    node.TRANSFORMER_ENC_LAYERS = args.get("transformer_enc_layers", 0)
    name = "MSDeformAttnPixelDecoder"
    cfg.MODEL.PROSCALE.MASK_OUTPUT_OPS = args.get("mask_output_ops", "conv")
    if meta["kind"] == "proscale":
        name, node = "PROSCALE", cfg.MODEL.PROSCALE
        node.PROSCALE_NUM_LAYERS = args["pyramid_num_layers"]
        node.RESIDUAL, node.EXCITE_TEMP = args["residual"], args["excite_temp"]
        node.IS_EXCITE_CONV = args["is_excite_conv"]
    elif meta["kind"] == "lite":
        name = "LiteDETRPixelDecoder"
        node.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = args["dim_feedforward"]
        node.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = args["n_points"]
        node = cfg.MODEL.LITE_DETR
        node.NUM_LAYERS, node.NUM_BLOCKS = args["num_layers"], args["num_blocks"]
        node.NUM_HIGH_LEVELS = args["num_high_levels"]
        node.KEY_AWARE, node.SMALL_FFN = args["key_aware"], args["small_expand"]
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
    outputs = {"mask_features": mask_features}
    outputs |= {f"ms{i}": level for i, level in enumerate(levels)}
    total = 0
    for name, output in outputs.items():
        torch.testing.assert_close(output, getattr(expected, name), rtol=1e-3, atol=1e-4)
        # The first files have a short name for the mask features' weights.
        short = name if meta["kind"] == "lite" else name.removesuffix("_features")
        total = total + (output * fill.random_input(f"{case}.g{short}", tuple(output.shape))).sum()

    total.backward()
    if hasattr(expected, "grad_sampling_offsets0"):
        found = decoder.transformer.encoder.layers[0].self_attn.sampling_offsets.weight.grad
        torch.testing.assert_close(found, expected.grad_sampling_offsets0, rtol=1e-3, atol=1e-4)
    for name, feature in features.items():
        reference = getattr(expected, f"grad_{name}")
        torch.testing.assert_close(feature.grad, reference, rtol=1e-3, atol=1e-4)
