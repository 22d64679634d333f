"""A worker of the data loader that dies is told in one line, unless a signal stopped the job."""

import logging
import os
import signal

import pytest
import torch

from proscale.data.training_loader import find_dead_worker
from proscale.engine import trainer as module
from proscale.errors import ProcessFailed


@pytest.fixture
def train(toy_cfg, toy_trainer, monkeypatch):
    """Returns a function: what a worker does instead of reading an image → trains with one."""

    def run(act, *overrides):
        def map_entry(entry: dict) -> dict:
            if torch.utils.data.get_worker_info() is not None:
                act()
            image = torch.rand(3, 4, 4)
            return {**entry, "image": image, "instances": [0]}

        monkeypatch.setattr(module, "build_mapper", lambda cfg, is_train: map_entry)
        settings = ("DATALOADER.NUM_WORKERS", 1, "DATASETS.TEST", ())
        trainer = toy_trainer(toy_cfg(*settings, *overrides))
        trainer.train()
        return trainer

    return run


def end_of_file():
    raise EOFError("a file that ends early")


def test_death_is_told_with_its_signal_and_a_hint(train, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(ProcessFailed) as error:
        train(lambda: os.kill(os.getpid(), signal.SIGKILL))
    message = str(error.value)
    assert "is killed by signal: Killed: perhaps for want of memory" in message
    assert "DATALOADER.NUM_WORKERS" in message and "\n" not in message
    # Detectron2's log has no traceback.
    assert not any(record.exc_info for record in caplog.records)
    assert message in [record.message for record in caplog.records]


def test_error_in_a_worker_is_its_own(train):
    with pytest.raises(EOFError, match="a file that ends early"):
        train(end_of_file)


def test_worker_that_dies_while_handing_over_is_told(train, monkeypatch):
    """The main process then has an error of the connection, not PyTorch's sentence."""

    class Batches:
        def __next__(self):
            raise EOFError

        def __iter__(self):
            return self

    monkeypatch.setattr("proscale.data.training_loader.DataLoader", lambda *_, **__: Batches())
    with pytest.raises(ProcessFailed, match="DataLoader worker is killed: perhaps"):
        train(lambda: None)


def test_signal_to_a_worker_that_has_just_started_does_not_kill_it(train):
    """As to all processes of a job while it starts."""
    active = [True]

    def kill_child() -> None:
        if active:
            os.kill(os.getpid(), signal.SIGTERM)

    os.register_at_fork(after_in_child=kill_child)
    try:
        assert train(lambda: None, "SOLVER.MAX_ITER", 2).iter == 2
    finally:
        active.clear()


def test_stopped_job_whose_worker_died_exits_with_the_signal(train, monkeypatch):
    monkeypatch.setattr(module.StopRequest, "__enter__", lambda self: setattr(self, "received", 15))
    with pytest.raises(SystemExit) as stop:
        train(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert stop.value.code == 128 + signal.SIGTERM


def test_other_errors_are_none_of_a_worker():
    assert find_dead_worker(None) == find_dead_worker(RuntimeError("CUDA error")) == ""
