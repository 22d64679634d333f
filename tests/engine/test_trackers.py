"""Metrics are sent by the interfaces of three packages, of which stand-ins take the place."""

import sys
from types import SimpleNamespace

import pytest

from proscale.errors import ConfigError


@pytest.fixture
def package(monkeypatch):
    """Returns a function: name → the calls that a stand-in for the package gets."""

    def install(name: str) -> list[tuple]:
        calls: list[tuple] = []
        functions = ("init", "log", "finish", "set_experiment", "start_run", "log_params")
        stand_in = SimpleNamespace(
            **{
                function: lambda *args, function=function, **kwargs: calls.append(
                    (function, args, kwargs)
                )
                for function in (*functions, "log_metrics", "end_run")
            }
        )
        monkeypatch.setitem(sys.modules, name, stand_in)
        return calls

    return install


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_a_training_is_sent(name, package, toy_cfg, toy_trainer):
    calls = package(name)
    trainer = toy_trainer(toy_cfg("LOGGING.TRACKERS", [name], "LOGGING.PROJECT", "my project"))
    trainer.resume_or_load(resume=False)
    trainer.train()
    begin, *logs, end = [call for call in calls if call[0] not in ("start_run", "log_params")]
    if name == "mlflow":
        assert begin == ("set_experiment", ("my project",), {})
        (parameters,) = [call[1][0] for call in calls if call[0] == "log_params"]
        assert ("start_run", (), {"run_name": "output"}) in calls and end[0] == "end_run"
        assert parameters["SOLVER.MAX_ITER"] == "6"
    else:
        assert begin[0] == "init" and end[0] == "finish"
        assert begin[2]["project"] == "my project" and begin[2]["name"] == "output"
        assert begin[2]["config"]["SOLVER.MAX_ITER"] == 6
    assert {call[0] for call in logs} == {"log_metrics" if name == "mlflow" else "log"}
    steps = [call[2]["step"] for call in logs]
    assert steps == sorted(set(steps)) and steps
    names = {metric for call in logs for metric in call[1][0]}
    assert {"total_loss", "lr", "toy/images"} <= names


def test_a_package_that_is_missing(monkeypatch, toy_cfg, toy_trainer):
    monkeypatch.setitem(sys.modules, "wandb", None)
    cfg = toy_cfg("LOGGING.TRACKERS", ["wandb"])
    with pytest.raises(ConfigError, match="has wandb, which is not installed: pip install wandb"):
        toy_trainer(cfg)


def test_other_names_are_refused(toy_cfg):
    with pytest.raises(ConfigError, match=r"LOGGING\.TRACKERS"):
        toy_cfg("LOGGING.TRACKERS", ["comet"])
