"""Training and evaluation: configuration, optimiser, schedule, training step, trainer."""

from proscale.engine.checkpointer import Checkpointer
from proscale.engine.setup import ConfigError, check_weights, setup_cfg
from proscale.engine.trainer import RESULTS_FILE, Trainer

__all__ = ["RESULTS_FILE", "Checkpointer", "ConfigError", "Trainer", "check_weights", "setup_cfg"]
