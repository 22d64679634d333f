import importlib.util
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

from proscale.engine import trainer
from proscale.errors import ConfigError

SCRIPT = Path(__file__).parents[2] / "train_net.py"


@pytest.fixture(scope="module")
def train_net():
    spec = importlib.util.spec_from_file_location("train_net", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(train_net, toy_trainer, toy_cfg, tmp_path):
    """Returns a function: arguments after --config-file → runs train_net.py on the toy data."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(toy_cfg().dump())))

    def run(*arguments: str) -> None:
        args = train_net.argument_parser().parse_args(["--config-file", str(config), *arguments])
        train_net.main(args, train_net.setup(args))

    return run


def test_train_then_evaluate(run, tmp_path):
    output = tmp_path / "output"
    run()
    assert json.loads((output / trainer.RESULTS_FILE).read_text())["engine_toy"]["toy"]
    assert {"config.yaml", "log.txt", "metrics.json"} <= {path.name for path in output.iterdir()}
    (output / trainer.RESULTS_FILE).unlink()

    run("--eval-only", "MODEL.WEIGHTS", str(output / "model_final.pth"), "OUTPUT_DIR", f"{output}2")
    written = Path(f"{output}2", trainer.RESULTS_FILE).read_text()
    assert json.loads(written) == {"engine_toy": {"toy": {"images": 1.0, "PQ-cat": None}}}


def test_resume_continues_after_the_last_checkpoint(run, tmp_path):
    run("SOLVER.MAX_ITER", "3")
    run("--resume", "SOLVER.MAX_ITER", "5")
    last = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert last["iteration"] == 4
    steps = {
        float(state["step"]) for state in last["trainer"]["_trainer"]["optimizer"]["state"].values()
    }
    assert steps == {5.0}


def test_used_folder_is_left_alone_unless_overwriting_is_asked_for(run, tmp_path):
    output = tmp_path / "output"
    run("SOLVER.MAX_ITER", "5")
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=r"has last_checkpoint of a training: expected --resume"):
        run("SOLVER.MAX_ITER", "2")
    assert before == {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}
    # The weights may be those of the training that is removed.
    run("--overwrite", "SOLVER.MAX_ITER", "2", "MODEL.WEIGHTS", str(output / "model_final.pth"))
    assert [path.name for path in output.glob("*.pth")] == ["model_final.pth"]
    iterations = [json.loads(line)["iteration"] for line in (output / "metrics.json").open()]
    assert max(iterations) == 2  # the evaluation's
    for flag in ("--resume", "--eval-only"):
        with pytest.raises(ConfigError, match="--overwrite removes a training"):
            run("--overwrite", flag)


def test_evaluation_needs_weights(run):
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS is empty"):
        run("--eval-only")


def test_more_gpus_than_there_are(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="--num-gpus is 2, but this machine has 1 GPUs"):
        run("--num-gpus", "2")


def test_command_line_ends_with_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--config-file", "nowhere.yaml"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert stop.value.code == "train_net.py: there is no configuration file nowhere.yaml"
