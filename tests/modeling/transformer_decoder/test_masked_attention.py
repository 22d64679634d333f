"""Properties of the masked-attention decoder."""

import pytest
import torch
from torch import nn

from proscale.modeling import build_transformer_decoder
from proscale.modeling.attention import Attention
from proscale.ops import reference_operators
from proscale.ops.mask_resize import attention_mask


def test_attention_equals_torch():
    torch.manual_seed(0)
    ours, theirs = Attention(32, 4), torch.nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    look = torch.rand(2, 5, 7) > 0.4
    look[..., 0] = True
    expected, _ = theirs(query, key, value, attn_mask=~look.repeat_interleave(4, 0))
    torch.testing.assert_close(ours(query, key, value, look), expected)


def test_empty_mask_looks_everywhere():
    masks = torch.full((1, 2, 4, 4), -5.0)
    masks[0, 1, :2, :2] = 5.0
    look = attention_mask(masks, (2, 2))
    assert look[0, 0].all()
    assert look[0, 1].tolist() == [True, False, False, False]


def test_one_prediction_more_than_layers(build, features):
    outputs = build("MODEL.MASK_FORMER.DEC_LAYERS", 4)(*features)
    assert len(outputs["aux_outputs"]) == 3
    outputs = build("MODEL.MASK_FORMER.DEC_LAYERS", 1)(*features)
    assert outputs["aux_outputs"] == []
    assert outputs["pred_logits"].shape == (2, 30, 134)
    assert outputs["pred_masks"].shape == (2, 30, 8, 24)


def test_pre_norm_moves_the_norms(build, features):
    post = build()
    pre = build("MODEL.MASK_FORMER.PRE_NORM", True)
    pre.load_state_dict(post.state_dict())
    assert not torch.allclose(post(*features)["pred_logits"], pre(*features)["pred_logits"])


def test_projects_levels_of_another_width(build, features, small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 96
    levels = [torch.cat((level, level[:, :32]), 1) for level in features[0]]
    decoder = build()
    assert decoder.input_proj[0].weight.shape == (64, 96, 1, 1)
    assert decoder(levels, features[1])["pred_logits"].isfinite().all()


def test_projection_can_be_enforced(build):
    assert not list(build().input_proj.parameters())
    assert list(build("MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", True).input_proj.parameters())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DEC_LAYERS", 0, "num_layers is -1: expected whole numbers from 0"),
        ("HIDDEN_DIM", 66, "hidden_dim is 66: expected multiples of 4"),
        ("NHEADS", 5, "hidden_dim is 64: expected multiples of 4 and of nheads, 5"),
        ("NUM_OBJECT_QUERIES", 0, "num_queries is 0: expected whole numbers from 1"),
        ("TRANSFORMER_DECODER_NAME", "Standard", "expected MultiScaleMaskedTransformerDecoder"),
    ],
)
def test_wrong_arguments_are_refused(build, key, value, message):
    with pytest.raises(ValueError, match=message):
        build(f"MODEL.MASK_FORMER.{key}", value)


@pytest.mark.parametrize("sizes", [[(2, 3), (4, 6), (8, 12)], [(3, 3), (5, 7), (9, 13)]])
def test_last_prediction_is_the_same_without_the_auxiliary_ones(small_cfg, sizes):
    torch.manual_seed(0)
    decoder = build_transformer_decoder(small_cfg, 64).eval()
    levels = [torch.randn(2, 64, *size) for size in sizes]
    height, width = sizes[-1]
    mask_features = torch.randn(2, 48, 2 * height - 1, 2 * width)
    with torch.no_grad():
        full = decoder(levels, mask_features)
        last = decoder(levels, mask_features, auxiliary=False)
    assert len(full.pop("aux_outputs")) == decoder.num_layers
    assert full.pop("mask_features") is mask_features
    assert last.pop("mask_features") is None
    assert last.pop("aux_outputs") == []
    torch.testing.assert_close(last, full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_the_projection_of_the_mask_features_is_folded_into_the_queries(small_cfg, bias):
    torch.manual_seed(0)
    decoder = build_transformer_decoder(small_cfg, 64).eval()
    levels = [torch.randn(2, 64, *size) for size in ((2, 3), (4, 6), (8, 12))]
    finest, projection = torch.randn(2, 64, 16, 24), nn.Conv2d(64, 48, 1, bias=bias)
    calls = []
    projection.register_forward_hook(lambda *_: calls.append(True))
    with torch.no_grad():
        expected = decoder(levels, projection(finest), auxiliary=False)
        calls.clear()
        found = decoder(levels, finest, projection=projection, auxiliary=False)
        assert not calls, "the features were projected cell by cell"
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        # The reference implementation, and losses, have the features themselves.
        with reference_operators():
            assert decoder(levels, finest, projection=projection)["mask_features"] is None
        outputs = decoder(levels, finest, projection=projection)
        torch.testing.assert_close(outputs["mask_features"], projection(finest))
        torch.testing.assert_close(
            outputs["pred_masks"], expected["pred_masks"], rtol=1e-4, atol=1e-4
        )


def test_predictions_made_together_are_those_made_one_by_one(build, features):
    decoder = build()
    together = decoder(*features)
    with reference_operators():
        one_by_one = decoder(*features)
    assert together.pop("mask_features") is features[1]
    assert one_by_one.pop("mask_features") is None
    assert len(together["aux_outputs"]) == decoder.num_layers
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-4)


def test_masks_are_the_product_of_their_factors(build, features):
    outputs = build()(*features)
    for prediction in (outputs, *outputs["aux_outputs"]):
        masks = torch.einsum("bqc,bchw->bqhw", prediction["mask_embed"], outputs["mask_features"])
        torch.testing.assert_close(prediction["pred_masks"], masks)
