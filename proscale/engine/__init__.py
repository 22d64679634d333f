"""Training and evaluation: configuration, optimiser, schedule, training step, trainer."""

from proscale.engine.checkpointer import Checkpointer
from proscale.engine.launch import ProcessFailed, check_processes, launch
from proscale.engine.recorded_step import RecordedStep
from proscale.engine.setup import (
    ConfigError,
    built_from_keys,
    check_datasets,
    check_output_dir,
    check_weights,
    one_sentence,
    setup_cfg,
)
from proscale.engine.trainer import RESULTS_FILE, Trainer

__all__ = [
    "RESULTS_FILE",
    "Checkpointer",
    "ConfigError",
    "ProcessFailed",
    "RecordedStep",
    "Trainer",
    "built_from_keys",
    "check_datasets",
    "check_output_dir",
    "check_processes",
    "check_weights",
    "launch",
    "one_sentence",
    "setup_cfg",
]
