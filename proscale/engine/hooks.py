"""Hooks of a training besides Detectron2's: an orderly stop, and metrics that survive resuming."""

import logging
import signal
import threading
import time
from functools import partial
from types import FrameType
from typing import Any

from detectron2.engine import HookBase
from fvcore.common.history_buffer import HistoryBuffer

from proscale.checkpoint import Checkpointer
from proscale.engine.distributed import all_reduce_max

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

SECONDS_OF_ONE_REQUEST = 3.0
"""A signal so soon behind the first asks for the same. SLURM sends one to all processes of a job,
torchrun among them, which passes it on to those that have it already."""


class StopRequest:
    """Within it the first SIGTERM or SIGINT is noted, not obeyed; another one, more than
    ``SECONDS_OF_ONE_REQUEST`` later, kills at once.

    A signal that was ignored before, as SIGINT is in a shell's background jobs, stays so. Outside
    of the main thread, where Python allows no handlers, it does nothing.

    Attributes:
        received: number of the signal; 0 before it came.
    """

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
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
        # The handler only notes: a checkpoint is consistent between steps.
        now = time.monotonic()
        if not self.received:
            self.received, self._received_at = number, now
        # An impatient user, or a scheduler at the end of its grace period.
        elif now - self._received_at > SECONDS_OF_ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


class StopHook(HookBase):
    """Saves a checkpoint and exits after the step in which a process was asked to stop.

    ``after_step`` raises SystemExit in every process, with status 128 + signal, as shells have it.

    Args:
        request: of this process.
        checkpointer: of the training; may have saved the same step before.
    """

    def __init__(self, request: StopRequest, checkpointer: Checkpointer):
        self._request = request
        self._checkpointer = checkpointer

    def after_step(self) -> None:
        # Only some ranks may have got the signal; all have to stop after the same step.
        number = all_reduce_max(self._request.received)
        if not number:
            return
        iteration = self.trainer.iter
        # PeriodicCheckpointer may have saved this step.
        if self._checkpointer.saved_iteration != iteration:
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        logging.getLogger(__name__).warning(
            "%s: stopped and saved after iteration %d; --resume goes on from there",
            signal.Signals(number).name,
            iteration,
        )
        raise SystemExit(128 + number)


_LOGGED_STEPS = 20
_KEPT_STEPS = 1000


class MetricHistory(HookBase):
    """Keeps the latest values of smoothed metrics in the checkpoint, and drops old ones.

    Detectron2's writers log the median of the last 20 steps, and estimate the time left by the last
    1000; its storage keeps a million of each metric, in a long run more than a gigabyte. With the
    last 20 restored, a resumed run logs what an uninterrupted one would. Times are not restored.
    """

    def __init__(self) -> None:
        self._restored: dict[str, list[float]] = {}

    def before_train(self) -> None:
        storage = self.trainer.storage
        storage._history.default_factory = partial(HistoryBuffer, max_length=_KEPT_STEPS)
        # Later versions of Detectron2 take the median of the last iterations, not values.
        start = storage.iter
        for name, values in self._restored.items():
            for i, value in enumerate(values, start - len(values)):
                storage.iter = i
                storage.put_scalar(name, value)
        storage.iter = start

    def state_dict(self) -> dict[str, list[float]]:
        # A checkpoint may be saved before the training has begun.
        if not hasattr(self.trainer, "storage"):
            return self._restored
        storage = self.trainer.storage
        return {
            name: [value for value, _ in storage.history(name).values()[-_LOGGED_STEPS:]]
            for name, smoothed in storage.smoothing_hints().items()
            if smoothed and not name.endswith("time")
        }

    def load_state_dict(self, state_dict: dict[str, list[float]]) -> None:
        self._restored = state_dict
