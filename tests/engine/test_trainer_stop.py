import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from detectron2.engine import HookBase

from proscale.engine.trainer import StopRequest


class Signal(HookBase):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number: int, iteration: int):
        self.number, self.iteration = number, iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_signal_finishes_the_step_saves_and_exits(
    toy_cfg, toy_trainer, evaluations, caplog, number, status
):
    cfg = toy_cfg()
    trainer = toy_trainer(cfg)
    trainer.register_hooks([Signal(number, 3)])
    before = signal.getsignal(number)
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == status
    assert signal.getsignal(number) is before
    told = [record.message for record in caplog.records if "stopped" in record.message]
    assert told == [
        f"{number.name}: stopped and saved after iteration 3; --resume goes on from there"
    ]
    assert evaluations() == 0

    resumed = toy_trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 4


def test_signal_in_the_last_step_leaves_the_evaluation_to_the_resumed_run(
    toy_cfg, toy_trainer, evaluations
):
    cfg = toy_cfg()
    trainer = toy_trainer(cfg)
    trainer.register_hooks([Signal(signal.SIGTERM, 5)])
    with pytest.raises(SystemExit):
        trainer.train()
    assert evaluations() == 0
    names = {path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth")}
    assert names == {"model_0000002.pth", "model_0000005.pth", "model_final.pth"}
    resumed = toy_trainer(cfg)
    resumed.resume_or_load(resume=True)
    resumed.train()
    assert evaluations() == 1


def test_second_signal_kills_unless_it_is_of_the_same_request():
    script = textwrap.dedent("""
        import os, signal
        from proscale.engine import trainer as module
        with module.StopRequest() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            print(signals.received, flush=True)
            module.SECONDS_OF_ONE_REQUEST = 0.0
            os.kill(os.getpid(), signal.SIGINT)
            print("not reached", flush=True)
    """)
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.stdout == "15\n"
    assert process.returncode == -signal.SIGINT


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received == 0
            assert signal.getsignal(signal.SIGTERM) == signals._note
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_nothing_is_changed():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with StopRequest():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
