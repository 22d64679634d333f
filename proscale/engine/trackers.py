"""Metrics of a training sent to Weights & Biases, MLflow or trackio, beside TensorBoard's files.

None of them is installed with the project; where a service logs in, its own environment variables
say how.
"""

import importlib
from collections import defaultdict
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from proscale.config.schema import key_values
from proscale.errors import ConfigError

_WINDOW = 20  # steps whose median is sent, as TensorBoard's files have it
_LONGEST = 500  # characters of a parameter that MLflow takes


class Tracker(EventWriter):
    """Sends the scalars of a training, by the number of their step.

    A run has the name of ``OUTPUT_DIR``'s last folder, the configuration as its parameters, and
    belongs to the project ``LOGGING.PROJECT``.

    Args:
        name: of the package, ``wandb``, ``mlflow`` or ``trackio``.
        cfg: of the training.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, name: str, cfg: CfgNode) -> None:
        try:
            self._package: Any = importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"LOGGING.TRACKERS has {name}, which is not installed: pip install {name}"
            ) from error
        self._is_mlflow = name == "mlflow"
        self._last_step = -1
        run, settings = Path(cfg.OUTPUT_DIR).resolve().name, dict(key_values(cfg))
        if self._is_mlflow:
            self._package.set_experiment(cfg.LOGGING.PROJECT)
            self._package.start_run(run_name=run)
            self._package.log_params({k: str(v)[:_LONGEST] for k, v in settings.items()})
        else:
            # trackio has the interface of wandb.
            self._package.init(project=cfg.LOGGING.PROJECT, name=run, config=settings)

    def write(self) -> None:
        """Send what has come since the last call."""
        steps: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, step) in get_event_storage().latest_with_smoothing_hint(_WINDOW).items():
            if step > self._last_step:
                steps[step][name] = value
        # Services refuse steps that are not in their order.
        for step, metrics in sorted(steps.items()):
            log = self._package.log_metrics if self._is_mlflow else self._package.log
            log(metrics, step=step)
            self._last_step = step

    def close(self) -> None:
        """End the run."""
        (self._package.end_run if self._is_mlflow else self._package.finish)()


def build_trackers(cfg: CfgNode) -> list[Tracker]:
    """Those that ``LOGGING.TRACKERS`` names; a ConfigError as from ``Tracker``."""
    return [Tracker(name, cfg) for name in cfg.LOGGING.TRACKERS]
