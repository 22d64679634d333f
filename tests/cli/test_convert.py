import pytest
import torch
from safetensors.torch import load_file

from proscale.checkpoint import convert_state_dict
from proscale.cli import main
from proscale.modeling.backbones import MixVisionTransformer


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


@pytest.mark.parametrize(
    ("state", "target", "message"),
    [
        ({"a": torch.ones(1)}, "b.pth", r"proscale: .*in\.pth: names of no known scheme"),
        ({"a": torch.ones(1)}, "b.onnx", r"proscale: .*b\.onnx: accepts files \.pth"),
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
