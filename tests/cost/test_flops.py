"""Counts against those of the published implementations, and against the closed form."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from proscale.config import setup_cfg
from proscale.cost.encoder_cost import EncoderDesign, lite_cost
from proscale.cost.flops import FREE, HANDLES, count_flops
from proscale.cost.model_cost import (
    ENCODER_PART,
    EVERYTHING,
    NETWORK,
    PRODUCTS,
    RESULTS,
    list_parts,
)
from proscale.cost.shape_tracing import build_without_weights
from proscale.modeling.pixel_decoders.lite_detr import InterleavingArguments
from proscale.ops.fused import fuse_for_inference

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "coco" / "panoptic"
REFERENCE = json.loads((ROOT / "tests" / "golden" / "gflops_reference.json").read_text())
# About two seconds each.
FAST = ("mask2former-r50", "proscale-r50-333", "mask2former-swint", "proscale-swint-333")
FAST += ("proscale-swint-111",)
CASES = [
    pytest.param(
        case,
        id=f"{case['model']}-{case['height']}",
        marks=[] if case["model"] in FAST and case["height"] == 800 else pytest.mark.slow,
    )
    for case in REFERENCE
]


@cache
def count_reference(model, size):
    """A model of the reference, which names them `family-backbone-layers[-conv]`, counted."""
    family, backbone, *layers = model.removesuffix("-conv").split("-")
    name = "_".join([family, {"swint": "swin_tiny"}.get(backbone, backbone), *layers])
    operation = "conv" if model.endswith("-conv") else "maxpool"
    file = str(CONFIGS / f"{name}.yaml")
    cfg = setup_cfg(file, ["MODEL.DEVICE", "cpu", "MODEL.PROSCALE.MASK_OUTPUT_OPS", operation])
    return count_flops(build_without_weights(cfg), size)


def keys_of_cross_attention(case):
    """Products of queries with keys, which the published count leaves out, multiply-adds: three
    layers a level, 100 queries, width 256."""
    tokens = [(case["height"] // stride) * (case["width"] // stride) for stride in (32, 16, 8)]
    return 3 * sum(tokens) * 100 * 256


def test_a_network_of_timm_is_counted():
    pytest.importorskip("timm")
    file = str(CONFIGS / "proscale_efficientnet_lite0_111.yaml")
    model = build_without_weights(setup_cfg(file, ["MODEL.DEVICE", "cpu"]))
    count = count_flops(model, (128, 128))
    assert count.uncounted == {}
    assert count.by_module["backbone"] > 0


@pytest.mark.parametrize("case", CASES)
def test_equals_published_by_module(case):
    count = count_reference(case["model"], (case["height"], case["width"]))
    assert count.uncounted == {}
    assert count.parameters[""] / 1e6 == pytest.approx(case["params"], abs=0.0006)
    by_module, missing = dict(count.by_module), keys_of_cross_attention(case)
    by_module["sem_seg_head.predictor"] -= missing
    for module, expected in case["modules"].items():
        assert by_module[module] / 1e9 == pytest.approx(expected, rel=0.005), module
    assert count.by_operator["deformable_attention"] / 1e9 == pytest.approx(
        case["grid_sampler"], rel=0.005
    )
    # The published total includes semantic results.
    whole = count.total + count.results - missing
    assert whole / 1e9 == pytest.approx(case["total"], rel=0.005)


# Layers, blocks, key-aware; GFLOPs of the encoder's layers at 800x1216 and 1024x2048.
LITE = [
    (6, 3, False, (40.18, 86.63)),
    (6, 3, True, (43.67, 94.15)),
    (6, 1, False, (31.51, 67.94)),
    (6, 1, True, (33.57, 72.37)),
]


@pytest.mark.parametrize(("num_layers", "num_blocks", "key_aware", "expected"), LITE)
def test_layers_of_lite_m2f(num_layers, num_blocks, key_aware, expected):
    keys = {"NUM_LAYERS": num_layers, "NUM_BLOCKS": num_blocks, "KEY_AWARE": key_aware}
    overrides = [item for name in keys for item in (f"MODEL.LITE_DETR.{name}", keys[name])]
    cfg = setup_cfg(str(CONFIGS / "lite_m2f_r50.yaml"), ["MODEL.DEVICE", "cpu", *overrides])
    model = build_without_weights(cfg)
    count = count_flops(model, (800, 1216))
    layers = count.by_module["sem_seg_head.pixel_decoder.transformer"]
    assert layers / 1e9 == pytest.approx(expected[0], abs=0.006)
    # The other size by the closed form, which gives the whole pixel decoder.
    order = InterleavingArguments.from_config(cfg)
    around = count.encoder - layers
    costs = [
        lite_cost(EncoderDesign.from_config(cfg, size), order, mask_output_ops="conv")
        for size in ((800, 1216), (1024, 2048))
    ]
    assert costs[0] == count.encoder
    larger = costs[1] - around * (1024 * 2048) / (800 * 1216)
    assert larger / 1e9 == pytest.approx(expected[1], abs=0.006)
    if num_blocks == 3:
        whole = count.total + count.results
        whole -= keys_of_cross_attention({"height": 800, "width": 1216})
        assert whole / 1e9 == pytest.approx(211.1 if key_aware else 207.6, abs=0.06)


def test_published_claims():
    mask2former_r50, proscale_r50_333, *swin = FAST
    counts = {model: count_reference(model, (800, 1216)) for model in FAST}
    encoder = {model: count.encoder for model, count in counts.items()}
    everything = {model: count.total + count.results for model, count in counts.items()}

    def saved(costs, model, first):
        return 100 * (1 - costs[model] / costs[first])

    assert saved(encoder, swin[1], swin[0]) == pytest.approx(52, abs=1)
    assert saved(encoder, swin[2], swin[0]) == pytest.approx(80, abs=1)
    assert saved(everything, proscale_r50_333, mask2former_r50) == pytest.approx(27, abs=1)
    for model, share in ((mask2former_r50, 54), (swin[0], 50)):
        assert 100 * encoder[model] / everything[model] == pytest.approx(share, abs=1.2)


def test_parts_add_up(small_cfg):
    small_cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [2, 2, 2]
    model = build_without_weights(small_cfg)
    count = count_flops(model, (250, 330))  # padded to 256x352
    parts = list_parts(model, count)
    top = [part for part in parts if not part.within]
    *pieces, network, results, everything = top
    assert [part.name for part in top[-3:]] == [NETWORK, RESULTS, EVERYTHING]
    assert sum(part.multiply_adds for part in pieces) == network.multiply_adds == count.total
    assert sum(part.activations for part in pieces) == network.activations
    assert sum(part.parameters for part in pieces) == network.parameters
    assert network.multiply_adds + results.multiply_adds == everything.multiply_adds
    encoder = [part for part in parts if part.within == ENCODER_PART]
    assert [part.name for part in encoder] == [
        "input projections",
        "token re-calibration",
        "2 layers over res5",
        "2 layers over res5 + res4",
        "2 layers over res5 + res4 + res3",
        "lateral projections",
        "light-pixel embedding",
        "mask features",
    ]
    assert sum(part.multiply_adds for part in encoder) == count.encoder
    # 256x352 at strides 32, 16 and 8.
    assert list(count.queries.values()) == [88] * 2 + [440] * 2 + [1848] * 2


@pytest.mark.parametrize(
    ("name", "operation", "expansion", "fused", "millions"),
    [
        ("rt_m2f_r50", "conv", 1.0, False, 12.673),
        ("rt_m2f_swin_tiny", "conv", 1.0, False, 12.059),
        ("rt_m2f_r50", "maxpool", 1.0, False, 12.083),
        ("rt_m2f_swin_tiny", "maxpool", 1.0, False, 11.469),
        ("rt_m2f_r50", "conv", 1.0, True, 11.877),
        ("rt_m2f_swin_tiny", "conv", 1.0, True, 11.263),
        ("rt_m2f_r50", "maxpool", 0.5, False, 5.786),
        ("rt_m2f_swin_tiny", "maxpool", 0.5, False, 5.171),
    ],
)
def test_parameters_of_rt_m2f(name, operation, expansion, fused, millions):
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.PROSCALE.MASK_OUTPUT_OPS", operation]
    overrides += ["MODEL.RT_DETR_ENCODER.EXPANSION", expansion]
    model = build_without_weights(setup_cfg(str(CONFIGS / f"{name}.yaml"), overrides))
    decoder = model.sem_seg_head.pixel_decoder
    if fused:
        decoder = fuse_for_inference(decoder)
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    # The norms of single convolutions are fused here as well, 4,000 parameters.
    assert parameters / 1e6 == pytest.approx(millions, abs=0.005 if fused else 0.0006)


def test_parts_of_rt_m2f_add_up(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "RTDETRPixelDecoder"
    small_cfg.MODEL.RT_DETR_ENCODER.HIDDEN_DIM = 64
    model = build_without_weights(small_cfg)
    count = count_flops(model, (64, 96))
    encoder = [part for part in list_parts(model, count) if part.within == ENCODER_PART]
    assert [part.name for part in encoder] == [
        "input projections",
        "attention within levels",
        "top-down fusion",
        "bottom-up fusion",
        "lateral projections",
        "light-pixel embedding",
        "mask features",
        "up-sampling",
    ]
    assert sum(part.multiply_adds for part in encoder) == count.encoder
    assert list(count.queries.values()) == [6]  # tokens of res5


def test_fused_count_leaves_the_model(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "RTDETRPixelDecoder"
    small_cfg.MODEL.RT_DETR_ENCODER.HIDDEN_DIM = 64
    model = build_without_weights(small_cfg)
    names = list(model.state_dict())
    assert count_flops(model, (64, 64), fused=True).encoder < count_flops(model, (64, 64)).encoder
    assert list(model.state_dict()) == names


def test_parts_of_lite_m2f(small_cfg):
    small_cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "LiteDETRPixelDecoder"
    small_cfg.MODEL.LITE_DETR.NUM_BLOCKS = 2
    model = build_without_weights(small_cfg)
    count = count_flops(model, (250, 330))
    encoder = [part for part in list_parts(model, count) if part.within == ENCODER_PART]
    assert [part.name for part in encoder][1:3] == [
        "4 layers over res5 + res4 + res3, of res5 + res4",
        "2 layers over res5 + res4 + res3",
    ]
    assert sum(part.multiply_adds for part in encoder) == count.encoder
    assert list(count.queries.values()) == [440, 440, 1848] * 2


def test_counting_computes_nothing_and_leaves_the_model(small_cfg):
    model = build_model(small_cfg).train()
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    nn.init.constant_(model.backbone.norm0.weight, torch.nan)
    count = count_flops(model, (64, 64))
    assert model.training
    assert model.backbone.training
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == before
    assert count == count_flops(build_without_weights(small_cfg), (64, 64))


def test_an_unknown_operator_is_reported(small_cfg):
    model = build_without_weights(small_cfg)
    model.backbone.norm0 = _Unusual()
    assert count_flops(model, (64, 64)).uncounted == {"aten::logcumsumexp": 1}


class _Unusual(nn.Module):
    def forward(self, x):
        return x.logcumsumexp(0)


def test_no_operator_is_both_counted_and_free():
    assert not set(HANDLES) & set(FREE)


@pytest.mark.parametrize(
    ("merging", "operator"),
    [("bsm_hq", "scatter_reduce"), ("bsm_fast", "scatter_reduce"), ("n2d_2x2", "avg_pool2d")],
)
def test_token_merging_is_counted(cfg, merging, operator):
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "MixVisionTransformer"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "SegFormerHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 64
    cfg.MODEL.SEM_SEG_HEAD.NORM = "BN"
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]
    unmerged = count_flops(build_without_weights(cfg), (256, 256))
    cfg.MODEL.MIT.TOKEN_MERGING = merging
    model = build_without_weights(cfg)
    merged = count_flops(model, (256, 256))
    assert merged.uncounted == unmerged.uncounted == {}
    assert merged.by_operator[operator] > 0
    attention = "scaled_dot_product_attention"
    assert merged.by_operator[attention] < unmerged.by_operator[attention]
    names = [part.name for part in list_parts(model, merged) if not part.within]
    assert names == ["backbone", "head", NETWORK, RESULTS, EVERYTHING]
    if merging.startswith("bsm"):
        # Similarities of all tokens to the destinations.
        assert merged.by_operator["matmul"] > 0
        assert merged.by_operator["linalg_vector_norm"] > 0


POSE_REFERENCE = json.loads((ROOT / "tests" / "golden" / "pose_gflops_reference.json").read_text())


def count_pose(case, *overrides):
    """The pose estimator of a case of the reference, and its count."""
    _, variant, _, data = case["model"].split("-")
    # JBD's models are COCO's, but for the size of the crop and the keypoints.
    keypoints = {"coco": 17, "jbd": 20}[data]
    settings = {
        "MODEL.DEVICE": "cpu",
        "MODEL.MIT.TOKEN_MERGING": case["preset"],
        "MODEL.POSE.INPUT_SIZE": [case["width"], case["height"]],
        "MODEL.POSE.FLIP_TEST": False,
        "MODEL.POSE_HEAD.NUM_KEYPOINTS": keypoints,
    }
    file = str(ROOT / "configs" / "coco" / "keypoints" / f"segformer_{variant}.yaml")
    model = build_without_weights(setup_cfg(file, [x for pair in settings.items() for x in pair]))
    return model, count_flops(model, (800, 1280), **dict(overrides))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=f"{case['model']}-{case['preset']}",
            marks=[] if case["model"] == "segformer-b0-pose-coco" else pytest.mark.slow,
        )
        for case in POSE_REFERENCE
    ],
)
def test_pose_estimator_equals_published(case):
    model, count = count_pose(case)
    assert count.uncounted == {}
    assert count.parameters[""] / 1e6 == pytest.approx(case["params"], abs=0.0015)
    # Published are matrix products and convolutions, without norms and resizing.
    assert count.products / 1e9 == pytest.approx(case["total"], rel=0.005)
    parts = {part.name: part for part in list_parts(model, count)}
    assert parts[PRODUCTS].multiply_adds == count.products
    assert parts["backbone"].multiply_adds + parts["head"].multiply_adds == count.total


def test_fused_pose_head_costs_less():
    case = POSE_REFERENCE[0]
    (_, published), (_, fused) = count_pose(case), count_pose(case, ("fused", True))
    assert fused.by_module["pose_head"] < 0.5 * published.by_module["pose_head"]
    assert fused.by_module["backbone"] == published.by_module["backbone"]


# GFLOPs of encoder and network at 800x1216: facts about the published models.
DETECTORS = {
    "dino_r50": (157.2, 264.3),
    "dino_proscale_r50_0333": (102.0, 209.2),
    "dino_proscale_r50_0222": (68.0, 175.2),
    "dino_proscale_r50_0111": (34.0, 141.2),
    "dino_lite_r50": (59.2, 166.3),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_equal_published_counts(name):
    file = str(ROOT / "configs" / "coco" / "detection" / f"{name}.yaml")
    model = build_without_weights(setup_cfg(file, ["MODEL.DEVICE", "cpu"]))
    count = count_flops(model, (800, 1216))
    encoder, network = DETECTORS[name]
    assert count.uncounted == {}
    assert count.encoder / 1e9 == pytest.approx(encoder, rel=0.01)
    assert count.total / 1e9 == pytest.approx(network, rel=0.01)
    parts = {part.name: part for part in list_parts(model, count)}
    assert parts["transformer decoder"].multiply_adds / 1e9 == pytest.approx(20.99, rel=0.01)
    pieces = [part for part in parts.values() if part.within == ENCODER_PART]
    assert sum(part.multiply_adds for part in pieces) == count.encoder
    assert len(count.queries) == sum("encoder" in name for name in count.queries)


@pytest.mark.parametrize(("queries", "refines"), [("deformable", True), ("learned", False)])
def test_parts_of_deformable_detr(queries, refines):
    file = str(ROOT / "configs" / "coco" / "detection" / "deformable_detr_r50.yaml")
    keys = ["MODEL.DETECTOR.QUERIES", queries, "MODEL.DETECTOR.BOX_REFINEMENT", str(refines)]
    model = build_without_weights(setup_cfg(file, ["MODEL.DEVICE", "cpu", *keys]))
    parts = list_parts(model, count_flops(model, (256, 256)))
    whole = next(part for part in parts if part.name == NETWORK)
    outer = [part for part in parts if not part.within]
    outer = [part for part in outer if part.name not in (NETWORK, RESULTS, EVERYTHING)]
    assert sum(part.multiply_adds for part in outer) == whole.multiply_adds
    assert sum(part.parameters for part in outer) == whole.parameters
