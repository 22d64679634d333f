"""Mask2Former as the start of PRO-SCALE: which layers, which levels, what is new."""

import pytest
import torch
from detectron2.modeling import build_model

from proscale.checkpoint import adapt_weights

LAYERS = "sem_seg_head.pixel_decoder.transformer.encoder.layers."
HEADS, POINTS, WIDTH = 4, 4, 64  # of small_cfg


@pytest.fixture
def mask2former(small_cfg, fill):
    """The weights of a Mask2Former with four layers in its encoder."""
    cfg = small_cfg.clone()
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 4
    model = build_model(cfg)
    fill.fill_state_dict(model)
    return model.state_dict()


def test_same_model_takes_everything(small_cfg):
    model = build_model(small_cfg)
    result = adapt_weights(model.state_dict(), model)
    assert result.state_dict.keys() == model.state_dict().keys()
    assert not (result.new or result.left_out or result.layers or result.cut)


def test_proscale_from_mask2former(small_cfg, mask2former):
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [1, 2, 2]
    model = build_model(small_cfg)
    result = adapt_weights(mask2former, model)
    # Five layers over four: 0, 3/4, 6/4, 9/4 and 3, to the nearest.
    assert {layer: result.layers.get(layer, layer) for layer in range(5)} == {
        0: 0, 1: 1, 2: 2, 3: 2, 4: 3,
    }  # fmt: skip
    assert result.cut == {0: (1, 3), 1: (2, 3), 2: (2, 3)}
    new = "sem_seg_head.pixel_decoder."
    assert set(result.new) == {
        f"{new}transformer.encoder.token_excite.ops.weight",
        f"{new}transformer.encoder.token_excite.ops.bias",
        f"{new}layer_1.norm.weight",
        f"{new}layer_1.norm.bias",
    }
    assert set(result.left_out) == {
        name for name in mask2former if name.startswith(f"{new}layer_1.")
    }

    offsets = mask2former[f"{LAYERS}1.self_attn.sampling_offsets.weight"]
    by_level = offsets.view(HEADS, 3, POINTS, 2, WIDTH)
    taken = result.state_dict[f"{LAYERS}1.self_attn.sampling_offsets.weight"]
    assert torch.equal(taken.view(HEADS, 2, POINTS, 2, WIDTH), by_level[:, :2])
    bias = mask2former[f"{LAYERS}0.self_attn.attention_weights.bias"].view(HEADS, 3, POINTS)
    taken = result.state_dict[f"{LAYERS}0.self_attn.attention_weights.bias"]
    assert torch.equal(taken.view(HEADS, 1, POINTS), bias[:, :1])
    fc = f"{LAYERS}{{}}.linear1.weight"
    assert torch.equal(result.state_dict[fc.format(4)], mask2former[fc.format(3)])
    incompatible = model.load_state_dict(result.state_dict, strict=False)
    assert set(incompatible.missing_keys) == set(result.new)
    assert not incompatible.unexpected_keys


def test_lite_from_mask2former(small_cfg, mask2former):
    small_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "LiteDETRPixelDecoder"
    small_cfg.MODEL.PROSCALE.MASK_OUTPUT_OPS = "conv"
    small_cfg.MODEL.LITE_DETR.NUM_LAYERS = 4
    small_cfg.MODEL.LITE_DETR.NUM_BLOCKS = 2
    result = adapt_weights(mask2former, build_model(small_cfg))
    assert not (result.layers or result.cut)
    # Queries in place of weights, and the feed-forward network of fine tokens.
    assert {name.removeprefix(LAYERS).rsplit(".", 1)[0] for name in result.new} == {
        *(f"{layer}.self_attn.query_proj" for layer in range(4)),
        *(f"{layer}.{new}" for layer in (1, 3) for new in ("linear12", "linear22", "norm22")),
    }
    assert {name.removeprefix(LAYERS)[2:] for name in result.left_out} == {
        "self_attn.attention_weights.weight",
        "self_attn.attention_weights.bias",
    }


def test_proscale_that_is_a_mask2former_computes_the_same(small_cfg, mask2former):
    """All layers see all levels: nothing may be lost on the way."""
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [0, 0, 4]
    small_cfg.MODEL.PROSCALE.MASK_OUTPUT_OPS = "conv"
    small_cfg.MODEL.PROSCALE.RECALIBRATION = "none"
    model = build_model(small_cfg).eval()
    result = adapt_weights(mask2former, model)
    assert not (result.new or result.left_out or result.layers or result.cut)
    model.load_state_dict(result.state_dict)
    small_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    small_cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 4
    original = build_model(small_cfg).eval()
    original.load_state_dict(mask2former)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = model.infer(image), original.infer(image)
    torch.testing.assert_close(ours["pred_masks"], theirs["pred_masks"])


def test_levels_that_were_not_seen_are_new(small_cfg):
    """From fewer levels to more there is nothing to take over for sampling."""
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [2, 0, 0]
    state = build_model(small_cfg).state_dict()
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [0, 0, 2]
    result = adapt_weights(state, build_model(small_cfg))
    sampling = {"sampling_offsets", "attention_weights"}
    assert {name.split(".")[-2] for name in result.new} == sampling
    assert not result.cut


def test_other_classes_are_new(small_cfg):
    state = build_model(small_cfg).state_dict()
    small_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    result = adapt_weights(state, build_model(small_cfg))
    assert {name.rpartition(".")[0] for name in result.new} == {
        "sem_seg_head.predictor.class_embed",
        "criterion",
    }
    assert set(result.new) == set(result.left_out)
