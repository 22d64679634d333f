"""SegFormer's naming schemes: shapes of the published models, round trips, equal logits."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerModel

from proscale.checkpoint import (
    convert,
    convert_state_dict,
    read_checkpoint,
    write_checkpoint,
)
from proscale.errors import CheckpointError

STATE_DICTS = Path(__file__).parents[1] / "golden" / "state_dicts"
# The model of `build` as Transformers is told of it.
TINY = {
    "num_labels": 19,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 2, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
    "decoder_hidden_size": 16,
}
SEGFORMER = ("openmmlab", "nvidia", "huggingface", "transformers")
FORMS = {"openmmlab": "openmmlab"}  # the others are nvidia


@pytest.fixture
def build(small_segformer_cfg):
    """Returns a function: form and sizes → SegFormer without weights of its own."""

    def make(form: str, *, variant: str = "", device: str = "cpu", width: int = 16):
        cfg = small_segformer_cfg
        cfg.MODEL.DEVICE = device
        cfg.MODEL.MIT.VARIANT = variant
        cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = width
        cfg.MODEL.SEM_SEG_HEAD.SEGFORMER_FORM = form
        with torch.device(device):
            return build_model(cfg).eval()

    return make


@pytest.fixture
def state(build, fill):
    """Returns a function: scheme → this project's state dict with the scheme's head."""

    def make(scheme: str) -> dict[str, torch.Tensor]:
        model = build(FORMS.get(scheme, "nvidia"))
        fill.fill_state_dict(model)
        return model.state_dict()

    return make


def shapes(state):
    return {name: list(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("variant", ["b0", "b1", "b2", "b3", "b4", "b5"])
def test_published_names_of_openmmlab(build, variant):
    model = build("openmmlab", variant=variant, device="meta", width=256)
    published = json.loads((STATE_DICTS / f"segformer_{variant}_openmmlab.json").read_text())
    assert shapes(convert_state_dict(model.state_dict(), to="openmmlab")) == published


def test_published_names_of_transformers(build):
    model = build("nvidia", variant="b0", device="meta", width=256)
    published = json.loads((STATE_DICTS / "segformer_b0_transformers.json").read_text())
    assert shapes(convert_state_dict(model.state_dict(), to="transformers")) == published


@pytest.mark.parametrize("scheme", SEGFORMER)
def test_round_trip(state, scheme):
    ours = state(scheme)
    theirs = convert(ours, to=scheme)
    back = convert(theirs.state_dict)
    assert (theirs.source, back.source) == ("proscale", scheme)
    assert theirs.unknown == back.unknown == []
    assert back.state_dict.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(back.state_dict[name], tensor), name


@pytest.mark.parametrize("scheme", SEGFORMER)
def test_backbone_alone(state, scheme):
    backbone = {k: v for k, v in state(scheme).items() if k.startswith("backbone.")}
    theirs = convert_state_dict(backbone, to=scheme)
    assert not any(name.startswith(("backbone.", "segformer.")) for name in theirs)
    back = convert_state_dict(theirs)
    assert back.keys() == backbone.keys()
    assert all(torch.equal(back[name], backbone[name]) for name in backbone)


def test_between_other_schemes(state):
    nvidia = convert_state_dict(state("nvidia"), to="nvidia")
    files = convert_state_dict(nvidia, to="huggingface")
    assert shapes(convert_state_dict(files, to="nvidia")) == shapes(nvidia)


def test_nvidia_names(state):
    """By the paper's repository: stages from 1, keys and values in one layer."""
    nvidia = shapes(convert_state_dict(state("nvidia"), to="nvidia"))
    assert nvidia["backbone.patch_embed1.proj.weight"] == [8, 3, 7, 7]
    assert nvidia["backbone.block2.1.attn.kv.weight"] == [32, 16]
    assert nvidia["backbone.block4.0.mlp.dwconv.dwconv.bias"] == [128]
    assert nvidia["backbone.norm3.weight"] == [24]
    assert nvidia["decode_head.linear_c4.proj.weight"] == [16, 32]
    assert nvidia["decode_head.linear_fuse.conv.weight"] == [16, 64, 1, 1]


@pytest.mark.parametrize("variant", ["tiny", "b0"])
@pytest.mark.parametrize("scheme", ["huggingface", "transformers"])
def test_logits_equal_transformers(build, cfg, scheme, variant, tmp_path):
    config = SegformerConfig(**(TINY if variant == "tiny" else {"num_labels": 19}))
    torch.manual_seed(0)
    theirs = SegformerForSemanticSegmentation(config).eval()
    _randomise(theirs)
    state = theirs.state_dict()
    if scheme == "huggingface":
        theirs.save_pretrained(tmp_path)
        state = read_checkpoint(tmp_path / "model.safetensors")
    converted = convert(state)
    assert (converted.source, converted.unknown) == (scheme, [])

    cfg.MODEL.MIT.NORM_EPS = 1e-5  # Transformers leaves PyTorch's
    sizes = {"variant": "b0", "width": 256} if variant == "b0" else {}
    model = build("nvidia", **sizes)
    model.load_state_dict(converted.state_dict)
    image = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.sem_seg_head.layers(model.backbone(image))
        torch.testing.assert_close(ours, theirs(image).logits, rtol=1e-4, atol=1e-4)


def test_transformers_loads_what_is_written(state, tmp_path):
    config = SegformerConfig(**TINY)
    config.save_pretrained(tmp_path)
    ours = state("huggingface")
    write_checkpoint(
        tmp_path / "model.safetensors", convert_state_dict(ours, to="huggingface"), container=None
    )
    theirs, report = SegformerForSemanticSegmentation.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    back = convert_state_dict(theirs.state_dict())
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    # A backbone alone has the names of Transformers' SegformerModel.
    backbone = {k: v for k, v in ours.items() if k.startswith("backbone.")}
    names = convert_state_dict(backbone, to="transformers").keys()
    assert names == SegformerModel(config).state_dict().keys()


def test_equals_published_logits(build, golden, fill):
    """SegFormer++: weights by their names, converted, token merging on."""
    case = "segformer_b0_bsm_hq"
    expected = golden(case)
    weights = {
        name: torch.from_numpy(fill.fill_tensor(name, tuple(shape))) if shape else torch.tensor(0)
        for name, shape in expected.meta["state"].items()
    }
    model = build("openmmlab", variant="b0", width=256)
    model.load_state_dict(convert_state_dict(weights))
    model.backbone.set_token_merging(expected.meta["preset"])
    size = (expected.meta["height"], expected.meta["width"])
    image = fill.random_input(case, (1, 3, *size))
    with torch.no_grad():
        logits = model.sem_seg_head.layers(model.backbone(image))
    torch.testing.assert_close(logits, expected.logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("container", ["state_dict", "model"])
def test_containers_and_data_parallel(state, container):
    theirs = convert_state_dict(state("openmmlab"), to="openmmlab")
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.items()}
    nested = {container: wrapped, "meta": {"epoch": 3}}
    assert convert_state_dict(nested).keys() == convert_state_dict(theirs).keys()


def test_own_and_mask2former_names_pass_through():
    state = {"backbone.norm1.weight": torch.ones(3), "sem_seg_head.predictor.x": torch.zeros(1)}
    converted = convert(state)
    assert (converted.source, converted.unknown) == ("proscale", [])
    assert converted.state_dict == state


def test_unknown_names_are_kept_for_the_loader_to_list(state):
    theirs = convert_state_dict(state("nvidia"), to="nvidia")
    theirs["head.weight"] = torch.ones(2)  # ImageNet's classes, in files of backbones
    converted = convert(theirs)
    assert converted.unknown == ["head.weight"]
    assert "head.weight" in converted.state_dict
    further = convert(theirs, to="huggingface")
    assert further.unknown == ["head.weight"]
    assert "head.weight" not in further.state_dict


def test_head_of_another_form_is_refused(state):
    with pytest.raises(CheckpointError, match=r"scheme nvidia has no names for 20 tensors.*norm"):
        convert_state_dict(state("openmmlab"), to="nvidia")


def test_unknown_scheme_is_refused(state):
    with pytest.raises(
        CheckpointError, match="no naming scheme 'mmseg': expected proscale, openmm"
    ):
        convert_state_dict(state("nvidia"), to="mmseg")


@pytest.mark.parametrize("state", [{}, {"features.0.weight": torch.ones(1)}])
def test_names_of_no_scheme_are_refused(state):
    with pytest.raises(CheckpointError, match=r"names of no known scheme \(proscale, openmmlab"):
        convert_state_dict(state)


def _randomise(model):
    """Norms and running statistics other than ones and zeros."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
