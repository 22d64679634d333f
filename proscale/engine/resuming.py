"""What a resumed training has to have in common with the one that saved its checkpoint.

The optimiser has to be the same. Everything else may change, and is told: it takes effect, or the
checkpoint's value stays because the optimiser's state has it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode

from proscale.config.schema import key_values
from proscale.errors import CheckpointError, ConfigError, shown

logger = logging.getLogger(__name__)

_BLOCKS = ("DATALOADER", "DATASETS", "INPUT", "MODEL", "SOLVER")
# How a training is run, and how its model is tested, not what it computes; SEED is told apart.
_WITHOUT_EFFECT = (
    *("DATALOADER.NUM_WORKERS", "DATASETS.OWN", "DATASETS.TEST", "MODEL.DEVICE", "MODEL.WEIGHTS"),
    *("MODEL.TRUST_WEIGHTS", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINTS_TO_KEEP"),
    "SOLVER.MAX_SKIPPED_STEPS",
)
# The learning rates of the parameter groups and their other settings are restored with them.
_STAY = (
    *("SOLVER.BASE_LR", "SOLVER.BACKBONE_MULTIPLIER", "SOLVER.HEAD_MULTIPLIER"),
    *("SOLVER.BIAS_LR_FACTOR", "SOLVER.MOMENTUM", "SOLVER.NESTEROV", "SOLVER.WEIGHT_DECAY"),
    *("SOLVER.WEIGHT_DECAY_BIAS", "SOLVER.WEIGHT_DECAY_EMBED", "SOLVER.WEIGHT_DECAY_NORM"),
)
_AS_WEIGHTS = (
    "to start from its weights alone, leave --resume out and give the file as MODEL.WEIGHTS"
)


def training_settings(cfg: CfgNode) -> dict[str, Any]:
    """The keys that the course of a training depends on, for its checkpoints: plain values."""
    return {
        key: value
        for block in _BLOCKS
        for key, value in key_values(cfg[block], f"{block}.")
        if key not in _WITHOUT_EFFECT and not key.endswith("_TEST") and ".TEST." not in key
    }


def compare_settings(cfg: CfgNode, saved: Mapping[str, Any], iteration: int) -> None:
    """Tell in which settings a resumed training differs from that of its checkpoint.

    Args:
        cfg: of the resumed training.
        saved: :func:`training_settings` of the checkpoint's; empty in those of earlier versions.
        iteration: the last one of the checkpoint.

    Raises:
        ConfigError: the checkpoint is of a later iteration than the training ends with.
    """
    if iteration >= cfg.SOLVER.MAX_ITER:
        raise ConfigError(
            f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}: expected {iteration + 1} or more, the "
            f"iterations of the checkpoint in OUTPUT_DIR {cfg.OUTPUT_DIR}"
        )
    ours = training_settings(cfg)
    # A key of another version has nothing to be compared with.
    other = [key for key in ours if key in saved and not _equal(ours[key], saved[key])]
    changed = [f"{key} {shown(ours[key])}, was {shown(saved[key])}" for key in other]
    effective = [text for key, text in zip(other, changed, strict=True) if key not in _STAY]
    kept = [f"{key} {shown(saved[key])}, not {shown(ours[key])}" for key in other if key in _STAY]
    if effective:
        logger.warning("Other settings than the checkpoint's: %s", "; ".join(effective))
    if kept:
        logger.warning("These stay as they are in the checkpoint: %s", "; ".join(kept))


def check_optimizer(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse the state of another optimiser.

    Args:
        optimizer: of the resumed training.
        groups: ``param_groups`` of the state.

    Raises:
        ConfigError: it is of another class.
        CheckpointError: its parameters are others, or in other groups.
    """
    ours = optimizer.param_groups
    # AdamW has betas instead of a momentum.
    names = ["SGD" if "momentum" in part[0] else "ADAMW" for part in (ours, groups)]
    if names[0] != names[1]:
        raise ConfigError(
            f"SOLVER.OPTIMIZER is {names[0]}: expected {names[1]}, whose state the checkpoint has; "
            f"{_AS_WEIGHTS}"
        )
    sizes = [[len(group["params"]) for group in part] for part in (ours, groups)]
    # Files of others have no names.
    parameters = [[group.get("param_names") for group in part] for part in (ours, groups)]
    is_named = all(group is not None for part in parameters for group in part)
    if sizes[0] != sizes[1] or (is_named and parameters[0] != parameters[1]):
        raise CheckpointError(
            f"the checkpoint's optimiser has groups of {sizes[1]} parameters, this one's groups "
            f"{sizes[0]}, of other names or settings: expected the same model and the same factors "
            f"of SOLVER for its parts; {_AS_WEIGHTS}"
        )


def _equal(value: Any, other: Any) -> bool:
    # A list of a file may be a tuple of the command line.
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)):
        return list(value) == list(other)
    return value == other
