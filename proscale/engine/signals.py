"""Ends training in good order when a scheduler, the system or the user asks for it."""

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

from detectron2.engine import HookBase

from proscale.checkpoint import Checkpointer
from proscale.engine.all_reduce import all_reduce_max

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

SECONDS_OF_ONE_REQUEST = 3.0
"""A signal so soon behind the first asks for the same. SLURM sends one to all processes of a job,
torchrun among them, which passes it on to those that have it already."""


class StopSignals:
    """Within it the first SIGTERM or SIGINT is noted, not obeyed; another one, later than
    ``SECONDS_OF_ONE_REQUEST``, kills at once.

    A signal that was ignored before, as SIGINT is in a shell's background jobs, stays so. Outside
    of the main thread, where Python allows no handlers, it does nothing.

    Attributes:
        received: number of the signal; 0 before it came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._received_at = number, now
        elif now - self._received_at > SECONDS_OF_ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


class StopHook(HookBase):
    """Saves a checkpoint and exits after the step in which a process was asked to stop.

    ``after_step`` raises SystemExit in every process, with status 128 + signal, as shells have it.

    Args:
        signals: of this process.
        checkpointer: of the training; may have saved the same step before.
    """

    def __init__(self, signals: StopSignals, checkpointer: Checkpointer):
        self._signals = signals
        self._checkpointer = checkpointer

    def after_step(self) -> None:
        number = all_reduce_max(self._signals.received)
        if not number:
            return
        iteration = self.trainer.iter
        if self._checkpointer.saved_iteration != iteration:
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        logging.getLogger(__name__).warning(
            "%s: stopped and saved after iteration %d; --resume goes on from there",
            signal.Signals(number).name,
            iteration,
        )
        raise SystemExit(128 + number)
