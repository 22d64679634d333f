"""Names of models in tables."""

import pytest

from proscale.cost.tables import model_name


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        ("PROSCALE", "PRO-SCALE (1, 2, 1)"),
        ("MSDeformAttnPixelDecoder", "Mask2Former"),
        ("RTDETRPixelDecoder", "RT-M2F, expansion 0.5"),
        ("LiteDETRPixelDecoder", "Lite-M2F (2+1)x3"),
        ("MyPixelDecoder", "MyPixelDecoder"),
    ],
)
def test_models_have_the_names_of_their_encoders(small_cfg, decoder, name):
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [1, 2, 1]
    small_cfg.MODEL.RT_DETR_ENCODER.EXPANSION = 0.5
    small_cfg.MODEL.PROSCALE.MASK_OUTPUT_OPS = "conv"
    small_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = decoder
    assert model_name(small_cfg) == name


@pytest.mark.parametrize("decoder", ["RTDETRPixelDecoder", "LiteDETRPixelDecoder"])
def test_the_light_pixel_embedding_is_told(small_cfg, decoder):
    small_cfg.MODEL.PROSCALE.MASK_OUTPUT_OPS = "maxpool"
    small_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = decoder
    assert model_name(small_cfg).endswith(", Light-Pixel Embedding")


def test_a_budget_names_the_layers_that_compute(small_cfg):
    small_cfg.MODEL.PROSCALE.BUDGET = [1, 1, 1]
    assert model_name(small_cfg) == "PRO-SCALE (1, 1, 1)"
