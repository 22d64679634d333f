"""The best checkpoint of a training by a metric, and the end of a training that gets no better.

Detectron2's ``BestCheckpointer`` makes its file the one to resume from, and forgets the best metric
when a training is resumed.
"""

import logging
import math
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from proscale.checkpoint import Checkpointer, read_checkpoint
from proscale.errors import ConfigError

BEST = "model_best"
"""File in ``OUTPUT_DIR``, without suffix: weights alone, not to be resumed from."""

logger = logging.getLogger(__name__)


class EarlyStop(SystemExit):
    """A training ends, because its metric gets no better."""


class BestHook(HookBase):
    """Behind the evaluation: saves the weights whenever their metric is the best so far.

    Args:
        checkpointer: of the training.
        metric: task and name, such as ``panoptic_seg/PQ``; higher is better.
        period: iterations from evaluation to evaluation, ``TEST.EVAL_PERIOD``.
        patience: evaluations without a better one, of which the last raises ``EarlyStop`` on all
            ranks, after the final checkpoint; 0 never does.
    """

    def __init__(
        self, checkpointer: Checkpointer, metric: str, *, period: int, patience: int
    ) -> None:
        self._checkpointer, self._metric = checkpointer, metric
        self._period, self._patience = period, patience
        self.best: float | None = None
        self.iteration = 0  #: of the best
        self._without_better = 0

    def before_train(self) -> None:
        # The evaluation of a step comes after its checkpoint, from which a killed training resumes.
        path = Path(self._checkpointer.save_dir, f"{BEST}.pth")
        if self.trainer.start_iter and path.is_file():
            content = read_checkpoint(path)
            value, iteration = content.get(self._metric), content.get("iteration")
            if isinstance(value, float) and isinstance(iteration, int):
                is_earlier = iteration < self.trainer.start_iter
                if is_earlier and (self.best is None or value > self.best):
                    self.best, self.iteration, self._without_better = value, iteration, 0

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        # The last step is evaluated after the training.
        if not self._period or done % self._period or done == self.trainer.max_iter:
            return
        self._compare()
        if self._patience and self._without_better >= self._patience:
            self._checkpointer.save("model_final", iteration=self.trainer.iter)
            logger.warning(
                "%s has not been better than %.4g, of iteration %d, in %d evaluations: the "
                "training ends after iteration %d (SOLVER.EARLY_STOPPING)",
                *(self._metric, self.best or 0.0, self.iteration, self._without_better),
                self.trainer.iter,
            )
            raise EarlyStop(0)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self._compare()

    def _compare(self) -> None:
        # The main process alone has results.
        found = None
        if comm.is_main_process():
            latest = get_event_storage().latest()
            found = latest.get(self._metric, (None,))[0]
            if found is None:
                names = sorted(n for n in latest if "/" in n and not n.startswith("eta"))
                found = ", ".join(name for name in names if "-" not in name)
        found = comm.all_gather(found)[0]
        if not isinstance(found, float):
            raise ConfigError(
                f"TEST.BEST_METRIC is {self._metric}, which was not evaluated: expected one of "
                f"{found or 'the metrics of DATASETS.TEST'}"
            )
        # NaN, of a metric without any class, is never better.
        if found > (-math.inf if self.best is None else self.best):
            # After the training the number is one more than the last step's.
            self.iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
            self.best, self._without_better = found, 0
            values = {"iteration": self.iteration, self._metric: found}
            self._checkpointer.save_weights(BEST, **values)
            logger.info("%s is %.4g, the best so far: saved %s.pth", self._metric, found, BEST)
        else:
            self._without_better += 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on from."""
        counts = {"iteration": self.iteration, "without_better": self._without_better}
        return {"metric": self._metric, "best": self.best, **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state``, if it is of the same metric."""
        if state["metric"] == self._metric:
            self.best, self.iteration = state["best"], state["iteration"]
            self._without_better = state["without_better"]
