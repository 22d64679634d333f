"""RT-DETR's names: the encoder of Transformers' model computes the same here, and back."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from transformers import RTDetrConfig, RTDetrModel, RTDetrResNetConfig

from proscale.checkpoint import convert, convert_state_dict, read_checkpoint
from proscale_cli import main

CHANNELS = [32, 48, 64]  # of res3, res4, res5
PREFIX = "sem_seg_head.pixel_decoder."


@pytest.fixture
def theirs(fill):
    """Transformers' detector, weights by name."""
    config = RTDetrConfig(
        backbone_config=RTDetrResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, *CHANNELS],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        encoder_in_channels=CHANNELS,
        encoder_hidden_dim=64,
        encoder_ffn_dim=96,
        encoder_attention_heads=4,
        hidden_expansion=0.5,
        d_model=64,
        num_queries=10,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
    )
    model = RTDetrModel(config).eval()
    fill.fill_state_dict(model)
    return model


@pytest.fixture
def ours(cfg):
    """The pixel decoder of the same size."""
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.RT_DETR_ENCODER.HIDDEN_DIM = 64
    cfg.MODEL.RT_DETR_ENCODER.NHEADS = 4
    cfg.MODEL.RT_DETR_ENCODER.DIM_FEEDFORWARD = 96
    cfg.MODEL.RT_DETR_ENCODER.EXPANSION = 0.5
    widths = dict(zip(("res2", "res3", "res4", "res5"), (16, *CHANNELS), strict=True))
    shapes = {
        name: ShapeSpec(channels=width, stride=4 << i)
        for i, (name, width) in enumerate(widths.items())
    }
    return SEM_SEG_HEADS_REGISTRY.get("RTDETRPixelDecoder")(cfg, shapes).eval()


def load(decoder, state):
    """Load what is the decoder's; all of its encoder must be there."""
    own = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    missing, unexpected = decoder.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(name.startswith(("adapter_1", "layer_1", "mask_features")) for name in missing)


@pytest.mark.parametrize("in_file", [False, True], ids=["in_memory", "file"])
@torch.no_grad()
def test_levels_equal_transformers(theirs, ours, in_file, tmp_path):
    state = theirs.state_dict()
    if in_file:
        theirs.save_pretrained(tmp_path)
        state = read_checkpoint(tmp_path / "model.safetensors")
    converted = convert(state)
    assert converted.source == ("huggingface" if in_file else "transformers")
    # The detector's backbone and decoder stay as they are.
    assert not any("encoder." in n for n in converted.unknown if not n.startswith("backbone."))
    load(ours, converted.state_dict)
    generator = torch.Generator().manual_seed(0)
    # Square: on other maps Transformers may exchange rows and columns of the encoding.
    maps = [
        torch.randn(2, channels, 16 >> i, 16 >> i, generator=generator)
        for i, channels in enumerate(CHANNELS)
    ]
    projected = [project(x) for project, x in zip(theirs.encoder_input_proj, maps, strict=True)]
    expected = theirs.encoder(inputs_embeds=projected).last_hidden_state
    found = ours.encode(
        [project(x) for project, x in zip(ours.input_proj, reversed(maps), strict=True)]
    )
    for ours_map, theirs_map in zip(reversed(found), expected, strict=True):
        torch.testing.assert_close(ours_map, theirs_map, rtol=1e-3, atol=1e-4)

    # Back to the same tensors.
    encoder = {k: v for k, v in converted.state_dict.items() if k.startswith(PREFIX)}
    back = convert(encoder, to=converted.source)
    assert back.unknown == []
    for name, tensor in back.state_dict.items():
        assert torch.equal(tensor, state[name.removeprefix("model.")]), name


def as_published(decoder):
    """A file of RT-DETR's authors with this decoder's weights: a running average in containers."""
    state = {}
    for name, tensor in decoder.state_dict().items():
        if name.startswith("input_proj."):
            _, level, rest = name.split(".", 2)
            state[f"encoder.input_proj.{2 - int(level)}.{rest}"] = tensor
        elif name.startswith("hybrid_encoder."):
            state[name.replace("hybrid_encoder.", "encoder.", 1)] = tensor
    state["backbone.conv1.conv1_1.conv.weight"] = torch.zeros(4, 3, 3, 3)
    state["decoder.enc_output.0.weight"] = torch.zeros(4, 4)
    return {"ema": {"module": state, "updates": 7}, "last_epoch": 71}


def test_names_of_the_authors(ours, fill):
    fill.fill_state_dict(ours)
    file = as_published(ours)
    converted = convert(file)
    assert converted.source == "rt_detr"
    assert converted.unknown == [
        "backbone.conv1.conv1_1.conv.weight",
        "decoder.enc_output.0.weight",
    ]
    state = ours.state_dict()
    load(ours, converted.state_dict)
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in state.items())
    encoder = {k: v for k, v in converted.state_dict.items() if k.startswith(PREFIX)}
    back = convert_state_dict(encoder, to="rt_detr")
    assert back.keys() == {n for n in file["ema"]["module"] if n.startswith("encoder.")}


def test_command_fits_them_to_a_model(ours, fill, cfg, tmp_path, capsys):
    fill.fill_state_dict(ours)
    torch.save(as_published(ours), tmp_path / "rtdetr.pth")
    config = "coco/panoptic/rt_m2f_r50_light"
    narrow = ["MODEL.SEM_SEG_HEAD.CONVS_DIM", "64", "MODEL.RT_DETR_ENCODER.HIDDEN_DIM", "64"]
    narrow += ["MODEL.RT_DETR_ENCODER.DIM_FEEDFORWARD", "96"]
    output = tmp_path / "start.pth"
    main(["convert", str(tmp_path / "rtdetr.pth"), str(output), "--config-file", config, *narrow])
    printed = capsys.readouterr().out
    assert "names of scheme rt_detr" in printed
    taken = read_checkpoint(output)["model"]
    assert f"{PREFIX}hybrid_encoder.pan_blocks.1.conv3.conv.weight" in taken
    # The ResNet has other channels.
    assert f"{PREFIX}input_proj.0.0.weight" not in taken
