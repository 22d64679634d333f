import os
import re
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from safetensors.torch import load_file

from proscale.checkpoint import convert_state_dict, write_checkpoint
from proscale.config import setup_cfg
from proscale.modeling.backbones import MixVisionTransformer
from proscale_cli import main


@pytest.fixture
def nvidia_file(tmp_path, fill):
    """A backbone in NVIDIA's names, with the classes of ImageNet."""
    model = MixVisionTransformer(embed_dim=4, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])
    fill.fill_state_dict(model)
    ours = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    path = tmp_path / "mit.pth"
    torch.save({**convert_state_dict(ours, to="nvidia"), "head.weight": torch.ones(2)}, path)
    return path, ours


def test_to_own_names(nvidia_file, tmp_path, capsys):
    source, ours = nvidia_file
    target = tmp_path / "ours.pth"
    main(["convert", str(source), str(target)])
    written = torch.load(target, weights_only=True)["model"]
    assert written.keys() == {*ours, "head.weight"}
    assert all(torch.equal(written[name], ours[name]) for name in ours)
    output = capsys.readouterr().out
    assert f"{source}: names of scheme nvidia" in output
    assert f"{target}: {len(ours) + 1} tensors under the names of proscale" in output
    assert "Without a counterpart, kept under their names:\n  head.weight" in output


def test_to_another_scheme_and_format(nvidia_file, tmp_path, capsys):
    source, ours = nvidia_file
    target = tmp_path / "model.safetensors"
    main(["convert", str(source), str(target), "--to", "huggingface"])
    assert convert_state_dict(load_file(target)).keys() == ours.keys()
    assert "left out:\n  head.weight" in capsys.readouterr().out


def test_half_precision_leaves_statistics_and_biases(nvidia_file, tmp_path):
    source, ours = nvidia_file
    target = tmp_path / "half.safetensors"
    main(["convert", str(source), str(target), "--half"])
    written = load_file(target)
    for name, tensor in ours.items():
        expected = torch.float16 if tensor.ndim > 1 else tensor.dtype
        assert written[name].dtype == expected
        torch.testing.assert_close(written[name].to(tensor.dtype), tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("state", "target", "message"),
    [
        ({"a": torch.ones(1)}, "b.pth", r"proscale: .*in\.pth: names of no known scheme"),
        ({"a": torch.ones(1)}, "b.onnx", r"proscale: .*b\.onnx: expected files \.pth"),
        (
            {"backbone.x": torch.ones(1)},
            "b.pth",
            r"proscale: .*in\.pth: scheme nvidia has no names for 1 tensors",
        ),
    ],
)
def test_ends_with_one_sentence(tmp_path, state, target, message):
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(SystemExit, match=message):
        main(["convert", str(tmp_path / "in.pth"), str(tmp_path / target), "--to", "nvidia"])
    assert not (tmp_path / target).exists()


CONFIGS = Path(__file__).parents[2] / "configs" / "coco" / "panoptic"
SMALL = [
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.MASK_DIM", "32",
    "MODEL.MASK_FORMER.HIDDEN_DIM", "32", "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "64",
]  # fmt: skip


def test_says_what_the_weights_were_trained_with(tmp_path, capsys):
    source = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), source)
    main(["convert", str(source), str(tmp_path / "r18.pth")])
    output = capsys.readouterr().out
    assert "names of scheme torchvision" in output
    for line in (
        "INPUT.FORMAT RGB",
        "MODEL.PIXEL_STD [58.395, 57.12, 57.375]",
        "MODEL.RESNETS.STRIDE_IN_1X1 False",
    ):
        assert f"\n  {line}\n" in output

    file = str(CONFIGS / "mask2former_r50.yaml")
    fitted = [str(source), str(tmp_path / "fitted.pth"), "--config-file", file, *SMALL]
    main(["convert", *fitted])
    assert "Mind" not in capsys.readouterr().out
    main(["convert", *fitted, "INPUT.FORMAT", "BGR"])
    assert (
        f"Mind: they were trained with INPUT.FORMAT RGB, {file} has BGR" in capsys.readouterr().out
    )


def test_mask2former_to_proscale(tmp_path, cfg, capsys):
    cfg.merge_from_file(str(CONFIGS / "mask2former_r50.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *SMALL])
    weights = build_model(cfg).state_dict()
    source, target = tmp_path / "mask2former.safetensors", tmp_path / "proscale.pth"
    write_checkpoint(source, weights, container=None)
    file = str(CONFIGS / "proscale_r50_111.yaml")
    main(["convert", str(source), str(target), "--config-file", file, *SMALL])
    written = torch.load(target, weights_only=True)["model"]
    output = capsys.readouterr().out
    assert f"{target}: {len(written)} tensors for the model of {file}" in output
    assert "layer 0 from layer 0, 1 of 3 levels of its attention\n" in output
    assert "layer 1 from layer 3, 2 of 3 levels of its attention\n" in output
    assert "layer 2 from layer 5\n" in output
    new, left_out = re.search(r"\nNew, .*:\n(.*)\nLeft out:\n(.*)", output, re.S).groups()
    assert "token_excite.ops.weight" in new
    assert "pixel_decoder.layer_1.norm.bias" in new
    assert "encoder.layers.1: 16 tensors" in left_out
    assert "encoder.layers.0" not in left_out

    cfg.merge_from_file(file)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *SMALL])
    incompatible = build_model(cfg).load_state_dict(written, strict=False)
    assert len(incompatible.missing_keys) == 4
    assert not incompatible.unexpected_keys


class Harmful:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_untrusted_pickles(tmp_path, nvidia_file):
    state = torch.load(nvidia_file[0], weights_only=True)
    torch.save({"state_dict": state, "meta": Harmful(tmp_path / "trace")}, tmp_path / "in.pth")
    command = ["convert", str(tmp_path / "in.pth"), str(tmp_path / "out.pth")]
    with pytest.raises(SystemExit, match=r"because it has posix\.mkdir in it.*--trust"):
        main(command)
    assert not (tmp_path / "trace").exists()
    main([*command, "--trust"])
    assert (tmp_path / "trace").exists()
    assert torch.load(tmp_path / "out.pth", weights_only=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "nowhere.yaml"], "no configuration file nowhere.yaml"),
        (
            ["--config-file", "a.yaml", "b.yaml"],
            "--config-file is a.yaml b.yaml: expected one file",
        ),
        (["--config-file", "a.yaml", "--to", "nvidia"], "goes with --to proscale, not --to nvidia"),
        (
            ["--config-file", str(CONFIGS / "mask2former_r50.yaml"), *SMALL],
            "no tensor in it fits the model of .*mask2former_r50.yaml; it has ",
        ),
    ],
)
def test_models_that_do_not_fit(nvidia_file, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(["convert", str(nvidia_file[0]), str(tmp_path / "out.pth"), *arguments])
    assert not (tmp_path / "out.pth").exists()


def test_budget_of_an_elastic_model(tmp_path, capsys):
    """The slice is what the ordinary model of these layers loads, number by number."""
    config = str(CONFIGS / "proscale_r50_333.yaml")
    cfg = setup_cfg(config, [*SMALL, "MODEL.DEVICE", "cpu"]).clone()
    cfg.defrost()
    whole = build_model(cfg).state_dict()
    source, target = tmp_path / "elastic.pth", tmp_path / "121.pth"
    torch.save({"model": whole}, source)
    main(["convert", str(source), str(target), "--budget", "1,2,1"])
    sliced = torch.load(target, weights_only=True)["model"]
    cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS = [1, 2, 1]
    build_model(cfg).load_state_dict(sliced)
    layers = "sem_seg_head.pixel_decoder.transformer.encoder.layers.{}.linear1.weight"
    for ours, theirs in enumerate((0, 3, 4, 6)):
        assert torch.equal(sliced[layers.format(ours)], whole[layers.format(theirs)])

    for budget, message in (
        ("1,2", r"--budget is 1,2: expected layers up to .*elastic.pth, 3,3,3"),
        ("1,4,1", r"--budget is 1,4,1: expected layers up to"),
        ("x", r'"x": expected layers of each stage, such as 3,3,3'),
    ):
        with pytest.raises(SystemExit) as error:
            main(["convert", str(source), str(target), "--budget", budget])
        assert re.search(message, f"{error.value.code} {capsys.readouterr().err}")
    with pytest.raises(SystemExit, match="--budget goes with --to proscale, not --to transformers"):
        main(["convert", str(source), str(target), "--to", "transformers", "--budget", "1,1,1"])
