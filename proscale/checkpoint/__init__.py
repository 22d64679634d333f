"""Checkpoints: naming schemes, files, and loading into a model."""

from proscale.checkpoint.adapt import WeightTransfer, adapt_weights
from proscale.checkpoint.checkpointer import (
    LAST_CHECKPOINT,
    Checkpointer,
    check_weights,
    load_weights,
)
from proscale.checkpoint.convert import PROSCALE, SCHEMES, Conversion, convert, convert_state_dict
from proscale.checkpoint.description import DESCRIPTION, ModelDescription, read_description
from proscale.checkpoint.files import read_checkpoint, write_checkpoint
from proscale.errors import CheckpointError

__all__ = [
    "DESCRIPTION",
    "LAST_CHECKPOINT",
    "PROSCALE",
    "SCHEMES",
    "CheckpointError",
    "Checkpointer",
    "Conversion",
    "ModelDescription",
    "WeightTransfer",
    "adapt_weights",
    "check_weights",
    "convert",
    "convert_state_dict",
    "load_weights",
    "read_checkpoint",
    "read_description",
    "write_checkpoint",
]
