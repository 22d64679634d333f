"""Names of Deformable DETR and DINO: Transformers' model computes the same here, and back."""

import logging

import pytest
import torch
from detectron2.modeling import build_model
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

from proscale.checkpoint import Checkpointer, convert, convert_state_dict, read_checkpoint
from proscale.checkpoint.detr import LEVELS
from proscale.errors import CheckpointError

CHANNELS = [64, 128, 256, 512]
FORMS = {
    "two_stage": ("deformable", True),
    "learned": ("learned", True),
    "no_refinement": ("learned", False),
}


@pytest.fixture
def models(cfg, fill):
    """`models(form)`: Transformers' detector with weights by name, and one of ours of its size."""

    def make(form):
        queries, refines = FORMS[form]
        config = DeformableDetrConfig(
            backbone_config=ResNetConfig(
                embedding_size=64,
                hidden_sizes=CHANNELS,
                depths=[2, 2, 2, 2],
                layer_type="basic",
                out_features=["stage2", "stage3", "stage4"],
            ),
            d_model=64,
            encoder_layers=2,
            decoder_layers=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            num_queries=11,
            two_stage_num_proposals=11,
            two_stage=queries == "deformable",
            with_box_refine=refines,
            num_labels=5,
        )
        theirs = DeformableDetrForObjectDetection(config).eval()
        fill.fill_state_dict(theirs)
        cfg.MODEL.META_ARCHITECTURE = "Detector"
        cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
        cfg.MODEL.RESNETS.DEPTH = 18
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
        cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 64
        node = cfg.MODEL.DETECTOR
        node.QUERIES, node.BOX_REFINEMENT = queries, refines
        node.ENC_LAYERS = node.DEC_LAYERS = 2
        node.DIM_FEEDFORWARD, node.NUM_QUERIES = 48, 11
        return theirs, build_model(cfg).eval()

    return make


def load(model, state, shared=()):
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith(shared) for name in missing) if shared else not missing


@pytest.mark.parametrize(
    ("form", "in_file"),
    # Transformers 5 leaves all class heads but the first out of files of the form "learned".
    [*((form, False) for form in FORMS), ("two_stage", True), ("no_refinement", True)],
)
@torch.no_grad()
def test_boxes_equal_transformers(models, form, in_file, tmp_path):
    theirs, ours = models(form)
    state = theirs.state_dict()
    if in_file:
        theirs.save_pretrained(tmp_path)
        state = read_checkpoint(tmp_path / "model.safetensors")
    converted = convert(state)
    assert converted.source == ("huggingface" if in_file else "transformers")
    assert converted.unknown == []
    # Without refinement files have the one pair of heads once.
    once = in_file and form == "no_refinement"
    shared = ("detection_head.class_embed.1", "detection_head.bbox_embed.1") if once else ()
    load(ours, converted.state_dict, shared)
    images = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    expected, found = theirs(pixel_values=images), ours.infer(images)
    torch.testing.assert_close(found["pred_boxes"], expected.pred_boxes, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["pred_logits"], expected.logits, rtol=1e-3, atol=1e-3)

    # Back to the same tensors.
    back = convert(converted.state_dict, to=converted.source)
    assert back.unknown == []
    for name, tensor in state.items():
        assert torch.equal(back.state_dict[name], tensor), name


@torch.no_grad()
def test_padded_images_equal_transformers(models):
    """Padding is masked in the same way, but for norms, which do not see it here."""
    theirs, ours = models("two_stage")
    load(ours, convert_state_dict(theirs.state_dict()))
    images = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 128, 160, dtype=torch.int64)
    expected = theirs(pixel_values=images, pixel_mask=mask)
    found = ours.infer(images, [(128, 160)])
    torch.testing.assert_close(found["pred_boxes"], expected.pred_boxes, rtol=1e-3, atol=1e-4)


def as_published(model, dino):
    """A file of the authors with this detector's weights, levels from fine to coarse."""
    state = {"backbone.0.body.conv1.weight": torch.randn(64, 3, 7, 7)}
    for name, tensor in model.state_dict().items():
        if not name.startswith("detection_head."):
            continue
        name = name.removeprefix("detection_head.")
        if name.startswith("input_proj."):
            _, level, rest = name.split(".", 2)
            name = f"input_proj.{LEVELS - 1 - int(level)}.{rest}"
        elif name.endswith("level_embed"):
            tensor = tensor.flip(0)
        elif "sampling_offsets" in name:
            tensor = tensor.unflatten(0, (8, LEVELS, 4, 2)).flip(1).flatten(0, 3)
        elif "attention_weights" in name:
            tensor = tensor.unflatten(0, (8, LEVELS, 4)).flip(1).flatten(0, 2)
        if name.startswith(("class_embed", "bbox_embed")):
            kind, _, rest = name.partition(".")
            layers = [f"{kind}.{i}.{rest}" for i in range(6)] if dino else [name]
            for copy in layers:
                state[copy] = state["transformer.decoder." + copy] = tensor
        else:
            state[name] = tensor
    return {"model": state, "epoch": 11}


@pytest.mark.parametrize("queries", ["mixed", "deformable", "learned"])
def test_names_of_the_authors(queries, cfg, fill):
    cfg.MODEL.META_ARCHITECTURE = "Detector"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 32
    cfg.MODEL.DETECTOR.QUERIES = queries
    cfg.MODEL.DETECTOR.DIM_FEEDFORWARD, cfg.MODEL.DETECTOR.ENC_LAYERS = 48, 1
    cfg.MODEL.DETECTOR.NUM_QUERIES = 10
    model = build_model(cfg)
    fill.fill_state_dict(model)
    file = as_published(model, dino=queries == "mixed")
    converted = convert(file)
    assert converted.source == ("dino" if queries == "mixed" else "deformable_detr")
    assert converted.unknown == []
    head = {n: t for n, t in model.state_dict().items() if n.startswith("detection_head.")}
    assert converted.state_dict.keys() == {*head, "backbone.stem.conv1.weight"}
    assert all(torch.equal(converted.state_dict[name], tensor) for name, tensor in head.items())
    back = convert_state_dict(converted.state_dict, to=converted.source)
    assert back.keys() == file["model"].keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in file["model"].items())


def test_other_numbers_of_levels_are_refused():
    state = {
        "transformer.tgt_embed.weight": torch.zeros(3, 4),
        "transformer.encoder.layers.0.self_attn.attention_weights.weight": torch.zeros(160, 4),
    }
    with pytest.raises(CheckpointError, match="160 rows of 8 heads and 4 points: expected 128"):
        convert_state_dict(state)


def test_other_classes_start_anew(cfg, tmp_path, caplog):
    """Published files have 91 class logits for COCO's 80 classes."""
    cfg.MODEL.META_ARCHITECTURE = "Detector"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 91
    cfg.MODEL.DETECTOR.ENC_LAYERS = cfg.MODEL.DETECTOR.DEC_LAYERS = 1
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "coco.pth")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 80
    model = build_model(cfg)
    with caplog.at_level(logging.WARNING):
        Checkpointer(model, fine_tune=True).resume_or_load(str(tmp_path / "coco.pth"), resume=False)
    assert "a class layer of 9" in caplog.text and "all else is loaded" in caplog.text
