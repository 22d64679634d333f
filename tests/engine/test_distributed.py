"""What the command line may ask for, and a job of processes started by it."""

import os
from argparse import Namespace

import pytest
import torch
from detectron2.engine import default_argument_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from proscale.engine import distributed
from proscale.engine.distributed import check_processes, is_started_by_torchrun, launch
from proscale.errors import ConfigError, ProcessFailed

TORCHRUN = {"TORCHELASTIC_RUN_ID": "1"}


def parse(*words: str) -> Namespace:
    return default_argument_parser().parse_args(list(words))


def test_one_process_needs_nothing(cfg):
    calls = []
    args = parse()
    check_processes(args, {})
    launch(lambda *given: calls.append(given), args, cfg)
    assert calls == [(args, cfg)]


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["--num-gpus", "2"], {}, "2, but this machine has 1 GPUs; .*torchrun --nproc_per_node 2"),
        (["--num-gpus", "2"], TORCHRUN, "expected 1 under torchrun"),
        (["--num-machines", "2"], TORCHRUN, "expected 1 under torchrun"),
        (
            ["--num-machines", "2", "--dist-url", "file:///shared"],
            {},
            "--dist-url is file:///shared: expected tcp://HOST:PORT",
        ),
        (["--num-gpus", "0"], {}, "--num-gpus is 0: expected 1 or more"),
        (["--num-gpus", "-1"], {}, "--num-gpus is -1: expected 1 or more"),
        (["--num-machines", "0"], {}, "--num-machines is 0: expected 1 or more"),
        (["--machine-rank", "1"], {}, "--machine-rank is 1: expected 0 to 0"),
        (["--num-machines", "2", "--dist-url", "auto"], {}, "--dist-url is auto"),
        ([], TORCHRUN | {"TORCHELASTIC_MAX_RESTARTS": "3"}, "expected 0 without --resume"),
    ],
)
def test_what_cannot_be_started(monkeypatch, words, environment, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=message):
        check_processes(parse(*words), environment)


def test_restarts_with_resume():
    check_processes(parse("--resume"), TORCHRUN | {"TORCHELASTIC_MAX_RESTARTS": "3"})
    assert is_started_by_torchrun(TORCHRUN) and not is_started_by_torchrun({})


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:1", "MODEL.DEVICE is cuda:1: expected cuda"),
        ("cuda", "started 4 processes on this machine, which has 2 GPUs"),
    ],
)
def test_devices_of_several_processes(monkeypatch, cfg, device, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (TORCHRUN | {"LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    cfg.MODEL.DEVICE = device
    with pytest.raises(ConfigError, match=message):
        launch(pytest.fail, parse(), cfg)


@pytest.mark.parametrize(("status", "expected"), [(143, 143), (-15, 143), (130, 130), (-2, 130)])
def test_signal_to_the_processes_is_one_to_the_job(monkeypatch, cfg, status, expected):
    with pytest.raises(SystemExit) as stop:
        launch_failing(monkeypatch, cfg, status)
    assert stop.value.code == expected


@pytest.mark.parametrize("status", [1, -9, 137])
def test_other_ends_of_a_process_are_failures(monkeypatch, cfg, status):
    with pytest.raises(ProcessFailed, match="process 1 failed"):
        launch_failing(monkeypatch, cfg, status)


def launch_failing(monkeypatch, cfg, status: int) -> None:
    """Launch two processes, of which one is told to have ended with this status."""
    failure = ProcessFailure(local_rank=1, pid=1, exitcode=status, error_file="none")

    def fail(*_):
        raise ChildFailedError("train_net.py", {1: failure})

    monkeypatch.setattr(distributed, "elastic_launch", lambda *_: fail)
    launch(pytest.fail, parse("--num-gpus", "2", "--dist-url", "auto"), cfg)


def fail_in_one(args: Namespace, cfg) -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("no luck")
    torch.distributed.barrier()


@pytest.mark.slow
def test_failure_of_a_process_that_was_started_here(monkeypatch, cfg):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    args = parse("--num-gpus", "2", "--dist-url", "auto")
    with pytest.raises(ProcessFailed, match=r"(?s)process 1 failed: .*ValueError: no luck"):
        launch(fail_in_one, args, cfg)
