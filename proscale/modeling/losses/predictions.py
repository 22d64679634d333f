"""What set criteria share: predictions of all layers, their matching, and means over a step."""

from collections.abc import Sequence

import torch
from detectron2.utils import comm
from torch import Tensor, nn

Matches = list[tuple[Tensor, Tensor]]
"""Of each image, the matched queries and their targets."""


def list_predictions(outputs: dict) -> tuple[list[dict], list[str]]:
    """The last prediction, without a suffix to its losses' names, then the auxiliary ones."""
    auxiliary = outputs.get("aux_outputs", ())
    return [outputs, *auxiliary], ["", *(f"_{i}" for i in range(len(auxiliary)))]


def match_predictions(
    matcher: nn.Module, outputs: dict, targets: list[dict[str, Tensor]]
) -> list[Matches]:
    """Match every prediction of ``outputs``, the last one first, then the auxiliary ones.

    Raises:
        FloatingPointError: a cost is not finite; tells which term, of which image and output.
    """
    matches: list[Matches] = []
    for prediction, suffix in zip(*list_predictions(outputs), strict=True):
        try:
            matches.append(matcher(prediction, targets))
        except FloatingPointError as error:
            output = f"auxiliary output {suffix[1:]}" if suffix else "the last output"
            raise FloatingPointError(f"matching {output}: {error}") from None
    return matches


def means_over_step(sums: Sequence[float], images: int, like: Tensor) -> Tensor:
    """``sums`` over the images of a step on this process, as means for a batch like ``like``
    ``(B, …)``: of ``images`` images here, and of all those of other processes.

    The parts of a batch, normalised by them, add up to the whole batch's losses.
    """
    totals = like.new_tensor([*sums, images], dtype=torch.float32)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(totals)
    return totals[:-1] * len(like) / totals[-1]
