"""Training and evaluation: configuration, optimiser, schedule, training step, trainer."""

from proscale.engine.checkpointer import LAST_CHECKPOINT, Checkpointer, load_weights
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
    "LAST_CHECKPOINT",
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
    "load_weights",
    "one_sentence",
    "setup_cfg",
]
