"""Lets the figures that are logged after resuming be those of a run that was not interrupted.

Detectron2's writers log the median of the last 20 steps, and estimate the time left by the last
1000; its storage keeps a million of each figure, which in a long run is more than a gigabyte.
"""

from functools import partial

from detectron2.engine import HookBase
from fvcore.common.history_buffer import HistoryBuffer

_WINDOW = 20
_KEPT = 1000


class RecentMetrics(HookBase):
    """Keeps the latest values of all smoothed metrics but times in the checkpoint, and old values
    of none in memory."""

    def __init__(self) -> None:
        self._restored: dict[str, list[float]] = {}

    def before_train(self) -> None:
        storage = self.trainer.storage
        storage._history.default_factory = partial(HistoryBuffer, max_length=_KEPT)
        # Later versions of Detectron2 take the median of the last iterations, not values.
        start = storage.iter
        for name, values in self._restored.items():
            for i, value in enumerate(values, start - len(values)):
                storage.iter = i
                storage.put_scalar(name, value)
        storage.iter = start

    def state_dict(self) -> dict[str, list[float]]:
        if not hasattr(self.trainer, "storage"):  # not training yet
            return self._restored
        storage = self.trainer.storage
        return {
            name: [value for value, _ in storage.history(name).values()[-_WINDOW:]]
            for name, smoothed in storage.smoothing_hints().items()
            if smoothed and not name.endswith("time")
        }

    def load_state_dict(self, state_dict: dict[str, list[float]]) -> None:
        self._restored = state_dict
