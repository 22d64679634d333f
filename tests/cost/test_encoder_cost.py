"""The closed form against the count, and what fits a budget."""

from pathlib import Path

import pytest

from proscale.config import setup_cfg
from proscale.cost.encoder_cost import (
    EncoderDesign,
    affordable,
    mask2former_cost,
    pareto_front,
    proscale_cost,
    write_config,
)
from proscale.cost.flops import count_flops, padded_size
from proscale.cost.shape_tracing import build_without_weights


@pytest.mark.parametrize(
    ("size", "layers", "overrides"),
    [
        ((250, 330), (1, 2, 3), []),
        ((64, 96), (0, 2, 0), ["MODEL.PROSCALE.MASK_OUTPUT_OPS", "conv"]),
        ((97, 64), (3, 0, 1), ["MODEL.PROSCALE.IS_EXCITE_CONV", True]),
        ((64, 64), (1, 1, 1), ["MODEL.PROSCALE.RECALIBRATION", "none"]),
        ((64, 64), (1, 0, 0), ["MODEL.SEM_SEG_HEAD.NORM", "BN"]),
        ((64, 64), (1, 0, 0), ["MODEL.SEM_SEG_HEAD.NORM", ""]),
        ((64, 64), (2, 1, 1), ["MODEL.SEM_SEG_HEAD.CONVS_DIM", 96, "MODEL.MASK_FORMER.NHEADS", 8]),
        (
            (64, 96),
            (1, 1, 1),
            ["MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS", 3]
            + ["MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD", 320],
        ),
        (
            (64, 96),
            (2, 1),
            ["MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", ["res4", "res5"]],
        ),
    ],
)
def test_equals_the_count(small_cfg, size, layers, overrides):
    small_cfg.merge_from_list(overrides)
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = list(layers)
    model = build_without_weights(small_cfg)
    design = EncoderDesign.from_config(small_cfg, padded_size(model, size))
    assert proscale_cost(design, layers) == count_flops(model, size).encoder


def test_equals_the_count_of_mask2former(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    small_cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 6
    design = EncoderDesign.from_config(small_cfg, (64, 96))
    count = count_flops(build_without_weights(small_cfg), (64, 96))
    assert mask2former_cost(design) == count.encoder


def test_unknown_norms_and_other_numbers_of_levels_are_refused(small_cfg):
    design = EncoderDesign.from_config(small_cfg, (64, 64))
    with pytest.raises(ValueError, match=r"layers is \(1, 1\): expected one number for each"):
        proscale_cost(design, (1, 1))
    small_cfg.MODEL.SEM_SEG_HEAD.NORM = "LN"
    with pytest.raises(ValueError, match=r"MODEL.SEM_SEG_HEAD.NORM is 'LN': the closed form acc"):
        EncoderDesign.from_config(small_cfg, (64, 64))


def test_front_within_a_budget(small_cfg):
    design = EncoderDesign.from_config(small_cfg, (256, 256))
    budget = 0.6
    found = affordable(design, budget, max_layers=3)
    assert [one.multiply_adds for one in found] == sorted(one.multiply_adds for one in found)
    assert all(one.share <= budget for one in found)
    front = pareto_front(found)
    affordable_layers = {one.layers for one in found}
    for one in front:
        # One layer more at any stage is beyond the budget or the limit, or drops what it had.
        for stage in range(3):
            more = tuple(count + (index == stage) for index, count in enumerate(one.layers))
            assert more not in affordable_layers
    everyone = {one.layers: one for one in found}
    assert everyone[1, 2, 0].depths == (3, 2, 0)
    dropped = [one for one in found if one not in front]
    assert dropped
    for one in dropped:
        assert any(
            all(a >= b for a, b in zip(other.depths, one.depths, strict=True)) for other in front
        )


def test_written_configuration_builds(small_cfg, tmp_path: Path):
    base, file = tmp_path / "base.yaml", tmp_path / "chosen" / "small.yaml"
    small_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    base.write_text(small_cfg.dump())
    write_config(file, base, (2, 0, 1))
    cfg = setup_cfg(str(file))
    assert "_BASE_: ../base.yaml" in file.read_text()
    decoder = build_without_weights(cfg).sem_seg_head.pixel_decoder
    assert decoder.transformer.encoder.num_layers == [2, 0, 1]
