"""Mask2Former's names: equal logits and masks with Hugging Face's, and back to the same tensors."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
)

from proscale.checkpoint import (
    convert,
    convert_state_dict,
    read_checkpoint,
    write_checkpoint,
)
from proscale.errors import CheckpointError

STATE_DICTS = Path(__file__).parents[1] / "golden" / "state_dicts"
NUM_CLASSES = 7
STAGES = ["stage1", "stage2", "stage3", "stage4"]
# The models of `build` as Transformers is told of them.
BACKBONES = {
    "swin": SwinConfig(
        embed_dim=16,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 4, 4],
        window_size=7,
        out_features=STAGES,
    ),
    "resnet": ResNetConfig(
        embedding_size=64,
        hidden_sizes=[32, 64, 128, 256],
        depths=[3, 4, 6, 3],
        layer_type="bottleneck",
        out_features=STAGES,
    ),
}
UNUSED = "model.pixel_level_module.encoder.swin.layernorm."


@pytest.fixture
def build(small_cfg):
    """Returns a function: backbone → this project's Mask2Former."""

    def make(backbone: str) -> torch.nn.Module:
        cfg = small_cfg
        cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_CLASSES
        cfg.MODEL.SEM_SEG_HEAD.NORM = "GN"
        cfg.MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 96
        if backbone == "resnet":
            cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
            cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
            cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
            cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
            cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
        return build_model(cfg).eval()

    return make


@pytest.fixture
def build_theirs(fill):
    """Returns a function: backbone → Transformers' model of the same size, weights by name."""

    def make(backbone: str) -> torch.nn.Module:
        config = Mask2FormerConfig(
            backbone_config=BACKBONES[backbone],
            num_labels=NUM_CLASSES,
            feature_size=64,
            mask_feature_size=48,
            hidden_dim=64,
            num_attention_heads=4,
            dim_feedforward=128,
            encoder_feedforward_dim=96,
            encoder_layers=2,
            decoder_layers=4,
            num_queries=30,
        )
        model = Mask2FormerForUniversalSegmentation(config).eval()
        fill.fill_state_dict(model)
        return model

    return make


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("in_file", [False, True], ids=["in_memory", "file"])
def test_logits_and_masks_equal_transformers(build, build_theirs, backbone, in_file, tmp_path):
    theirs = build_theirs(backbone)
    state = theirs.state_dict()
    if in_file:
        theirs.save_pretrained(tmp_path)
        state = read_checkpoint(tmp_path / "model.safetensors")
    converted = convert(state)
    assert converted.unknown == []
    assert converted.settings["INPUT.FORMAT"] == "RGB"

    model = build(backbone)
    missing, unexpected = model.load_state_dict(converted.state_dict, strict=False)
    assert not missing
    assert all(name.endswith("num_batches_tracked") for name in unexpected)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.infer(images)
        expected = theirs(pixel_values=images)
    for got, want in (
        (ours["pred_logits"], expected.class_queries_logits),
        (ours["pred_masks"], expected.masks_queries_logits),
    ):
        assert want.std() > 1e-3
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)

    back = convert(converted.state_dict, to="huggingface" if in_file else "transformers")
    assert back.unknown == []
    assert back.state_dict.keys() == state.keys()
    for name, tensor in state.items():
        if not name.startswith(UNUSED):
            assert torch.equal(back.state_dict[name], tensor), name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_transformers_loads_what_is_written(build, build_theirs, fill, backbone, tmp_path):
    build_theirs(backbone).config.save_pretrained(tmp_path)
    ours = build(backbone)
    fill.fill_state_dict(ours)
    state = convert_state_dict(ours.state_dict(), to="huggingface")
    write_checkpoint(tmp_path / "model.safetensors", state, container=None)
    theirs, report = Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["unexpected_keys"]
    # ResNet's norms are frozen here and have counted no batches.
    missing = [key for key in report["missing_keys"] if "num_batches_tracked" not in key]
    assert not missing
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = ours.infer(images)["pred_logits"]
        got = theirs.eval()(pixel_values=images).class_queries_logits
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", ["mask2former_r50", "mask2former_swin_tiny"])
@pytest.mark.parametrize("scheme", ["huggingface", "transformers"])
def test_published_models_there_and_back(model, scheme):
    shapes = json.loads((STATE_DICTS / f"{model}.json").read_text())
    ours = {name: torch.zeros(shape) for name, shape in shapes.items()}
    back = convert(convert_state_dict(ours, to=scheme))
    assert {name: list(tensor.shape) for name, tensor in back.state_dict.items()} == shapes


def test_model_zoo_pickle(tmp_path, build, fill):
    """Detectron2's form: arrays, their author, and that names are to be matched."""
    model = build("resnet")
    fill.fill_state_dict(model)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    content = {"model": arrays, "__author__": "third_party", "matching_heuristics": True}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps(content))
    state = convert_state_dict(read_checkpoint(path))
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_proscale_has_no_counterpart_there(small_cfg):
    state = build_model(small_cfg).state_dict()
    with pytest.raises(CheckpointError, match=r"huggingface has no names for .*token_excite"):
        convert_state_dict(state, to="huggingface")
