"""Checkpoints: naming schemes, files, and loading into a model."""

from proscale.checkpoint.checkpointer import ConvertingCheckpointer
from proscale.checkpoint.convert import (
    PROSCALE,
    SCHEMES,
    CheckpointError,
    Conversion,
    convert,
    convert_state_dict,
)
from proscale.checkpoint.files import read_checkpoint, write_checkpoint

__all__ = [
    "PROSCALE",
    "SCHEMES",
    "CheckpointError",
    "Conversion",
    "ConvertingCheckpointer",
    "convert",
    "convert_state_dict",
    "read_checkpoint",
    "write_checkpoint",
]
