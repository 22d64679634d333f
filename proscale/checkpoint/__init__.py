"""Checkpoints: naming schemes, files, and loading into a model."""

from proscale.checkpoint.adapt import Fit, fit
from proscale.checkpoint.checkpointer import ConvertingCheckpointer
from proscale.checkpoint.convert import PROSCALE, SCHEMES, Conversion, convert, convert_state_dict
from proscale.checkpoint.files import read_checkpoint, write_checkpoint
from proscale.errors import CheckpointError

__all__ = [
    "PROSCALE",
    "SCHEMES",
    "CheckpointError",
    "Conversion",
    "ConvertingCheckpointer",
    "Fit",
    "convert",
    "convert_state_dict",
    "fit",
    "read_checkpoint",
    "write_checkpoint",
]
