"""The one layer whose shape depends on the data set's classes, when a checkpoint has others.

Fine-tuning on a data set with another number of classes keeps everything but this layer. Any other
tensor of another shape means that the checkpoint is of another model.
"""

from collections.abc import Sequence
from typing import NamedTuple

CLASS_LAYER = frozenset(
    {
        "sem_seg_head.predictor.class_embed.weight",
        "sem_seg_head.predictor.class_embed.bias",
        # Heads that classify pixels.
        "sem_seg_head.predictor.weight",
        "sem_seg_head.predictor.bias",
        # The class loss's weights.
        "criterion.empty_weight",
    }
)
"""Names of the tensors whose first dimension is the number of classes, “no object” included."""

_NAMED = 5


class Mismatch(NamedTuple):
    """A tensor whose shape differs: in the checkpoint, and in the model."""

    key: str
    loaded: tuple[int, ...]
    expected: tuple[int, ...]


def has_other_classes(mismatches: Sequence[Mismatch]) -> bool:
    """Whether the number of classes is all that differs.

    Args:
        mismatches: all tensors whose shape differs.
    """
    return bool(mismatches) and all(
        m.key in CLASS_LAYER and m.loaded[1:] == m.expected[1:] for m in mismatches
    )


def describe_mismatches(mismatches: Sequence[Mismatch]) -> str:
    """Names and shapes of the first few, and how many there are."""
    shown = "; ".join(
        f"{m.key} is {m.loaded} in the checkpoint, {m.expected} in the model"
        for m in mismatches[:_NAMED]
    )
    more = len(mismatches) - _NAMED
    return shown + (f"; and {more} more" if more > 0 else "")


def describe_class_layer(mismatches: Sequence[Mismatch]) -> str:
    """What is new in one line, after ``has_other_classes``."""
    layer = max(mismatches, key=lambda m: len(m.expected))
    module, _, _ = layer.key.rpartition(".")
    return (
        f"the checkpoint has a class layer of {layer.loaded[0]} outputs, this model one of "
        f"{layer.expected[0]}: {module} starts afresh, all else is loaded"
    )
