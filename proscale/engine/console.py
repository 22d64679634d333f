"""What a person sees of a training: a few lines of progress, and warnings. The log has the rest.

Detectron2 prints all that it logs, in colours: a thousand lines for a short training.
"""

import logging
import re
import sys
import time
from collections.abc import Mapping
from math import ceil

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from detectron2.utils.logger import _cached_log_stream, setup_logger

_LINES = 30
"""Lines of progress at most."""
_LOGGERS = ("detectron2", "fvcore", "proscale")
_COLORS = re.compile("\x1b\\[[0-9;]*m")


class ProgressLine(EventWriter):
    """Prints the iteration, the loss, the pace, the time that is left and the GPU's memory.

    Args:
        start: the first iteration; a resumed training has others behind it.
        max_iter: where the training ends.

    Attributes:
        period: iterations from one line to the next; a multiple of 20.
    """

    def __init__(self, start: int, max_iter: int):
        self.period = 20 * ceil((max_iter - start) / 20 / _LINES) or 20
        self._start_iter, self._max_iter = start, max_iter
        self._start, self._written = time.monotonic(), start

    def write(self) -> None:
        storage = get_event_storage()
        # Detectron2 writes once more behind the last iteration.
        done = min(storage.iter + 1, self._max_iter)
        # It also writes when the first step has failed.
        if done == self._written or "total_loss" not in storage.histories():
            return
        self._written = done
        # At the mean pace so far.
        pace = (time.monotonic() - self._start) / (done - self._start_iter)
        left = int(pace * (self._max_iter - done))
        clock = f"{left // 3600}:{left // 60 % 60:02d}" if left >= 3600 else f"{left // 60}"
        loss = storage.history("total_loss").median(20)
        memory = ""
        if torch.cuda.is_available():
            memory = f"   {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        digits = len(str(self._max_iter))
        print(
            f"      iteration {done:{digits}d}/{self._max_iter}   loss {loss:5.1f}   "
            f"{pace:.2f} s each   {clock}:{left % 60:02d} left{memory}",
            flush=True,
        )


def leave_to_log() -> None:
    """Take what Detectron2's loggers print off the console, but for warnings; files have all of it,
    without the codes of colours."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            if isinstance(handler, (logging.FileHandler, _Console)):
                continue
            if getattr(handler, "stream", None) in (sys.stdout, sys.__stdout__):
                logger.removeHandler(handler)
            elif handler.formatter is not None:
                handler.setFormatter(_Plain(handler.formatter))
        if comm.is_main_process() and not any(isinstance(h, _Console) for h in logger.handlers):
            logger.addHandler(_Console())


def close_logs() -> None:
    """Take the handlers of Detectron2's loggers off, so that another training of this process
    writes to its own log alone."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
    # Detectron2 adds a handler, and opens a file, once for the same arguments.
    setup_logger.cache_clear()
    _cached_log_stream.cache_clear()


class _Console(logging.Handler):
    """Prints warnings and errors, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = _COLORS.sub("", record.getMessage()).partition("\n")[0]
        if message not in self._told:
            self._told.add(message)
            print(f"{record.levelname.lower()}: {message}", flush=True)


class _Plain(logging.Formatter):
    """Another formatter's text without codes of colours."""

    def __init__(self, inner: logging.Formatter):
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return _COLORS.sub("", self._inner.format(record))


def print_start(cfg: CfgNode, trainer: DefaultTrainer) -> None:
    """What is trained, on what, and where the files go."""
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    resumed = f", from iteration {trainer.start_iter}" if trainer.start_iter else ""
    processes = comm.get_world_size()
    print(
        f"Training on {', '.join(cfg.DATASETS.TRAIN)}: {parameters / 1e6:.1f} M parameters, "
        f"{trainer.max_iter} iterations of {cfg.SOLVER.IMS_PER_BATCH} images{resumed}, "
        f"{cfg.MODEL.DEVICE}" + (f", {processes} processes" if processes > 1 else ""),
        flush=True,
    )


def print_results(results: Mapping) -> None:
    """The metrics of an evaluation, those of single classes left out."""
    for name, metrics in results.items():
        if any(isinstance(value, Mapping) for value in metrics.values()):
            print(f"{name}:")
            print_results(metrics)
            continue
        main = {key: value for key, value in metrics.items() if "-" not in key}
        numbers = "   ".join(
            f"{key} {value:.2f}" for key, value in main.items() if isinstance(value, (int, float))
        )
        print(f"{name}   {numbers}")
