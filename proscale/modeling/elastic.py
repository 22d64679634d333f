"""Elastic PRO-SCALE: one training for all budgets of the encoder.

A budget has the first layers of every stage of the encoder compute. The sandwich rule trains the
largest budget in every step, the smallest and one between them in half of the steps each, and
distils the largest into the others (Yu and Huang, Universally Slimmable Networks, ICCV 2019, §3.3
and §3.4). None of the model's norms has running statistics that would depend on the budget.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor, nn

from proscale.modeling.losses import SetCriterion
from proscale.modeling.pixel_decoders.budget_gate import BudgetGate
from proscale.modeling.pixel_decoders.proscale import PROSCALE, ProgressiveEncoder

#: Of the losses of all but the largest budget.
SMALLER_WEIGHT = 0.5
#: Probability of each of the two smaller budgets.
SMALLER_PROBABILITY = 0.5
#: Of the terms towards the largest budget's class scores and masks.
DISTILLATION_WEIGHTS = {"loss_ce_distill": 1.0, "loss_mask_distill": 5.0}


def elastic_losses(
    predict: Callable[[], dict],
    encoder: ProgressiveEncoder,
    criterion: SetCriterion,
    targets: list[dict[str, Tensor]],
    target_counts: Sequence[int] | None,
) -> dict[str, Tensor]:
    """Weighted losses of the budgets of a training step.

    Args:
        predict: the head's outputs for the step's features, with the budget that ``encoder`` has.
        encoder: of the head; has its own budget again afterwards.
        criterion, targets, target_counts: see :class:`~proscale.modeling.losses.SetCriterion`.

    Returns:
        the largest budget's losses, by their usual names; with suffixes ``_smallest`` and
        ``_between`` each loss of the two others, where they were drawn, summed over all layers of
        the transformer decoder.
    """
    # The largest budget, as in an ordinary training.
    with budget_of(encoder, encoder.num_layers):
        largest = predict()
    matches = criterion.match(largest, targets)
    losses = criterion(largest, targets, target_counts, matches=matches)
    losses = {name: loss * criterion.weight_dict[name] for name, loss in losses.items()}
    # In-place distillation: its predictions are targets, no gradient flows into them.
    teacher = _detached(largest)
    weights = DISTILLATION_WEIGHTS | criterion.weight_dict
    for suffix, budget in draw_budgets(encoder, _shared_uniform(3)).items():
        with budget_of(encoder, budget):
            outputs = predict()
        # The same queries stand for the same targets, layer by layer.
        terms = criterion(outputs, targets, target_counts, matches=matches, teacher=teacher)
        for name, loss in terms.items():
            kind, _, layer = name.rpartition("_")
            kind = kind if layer.isdecimal() else name
            term = SMALLER_WEIGHT * weights[kind] * loss
            key = f"{kind}_{suffix}"
            losses[key] = losses[key] + term if key in losses else term
    return losses


def draw_budgets(encoder: ProgressiveEncoder, uniform: Sequence[float]) -> dict[str, list[int]]:
    """The budgets of a step besides the largest, from three numbers drawn from [0, 1)."""
    drawn = {}
    if uniform[0] < SMALLER_PROBABILITY:
        drawn["smallest"] = encoder.smallest_budget
    if uniform[1] < SMALLER_PROBABILITY:
        # Any but the largest, which is the last, all alike.
        number = int(uniform[2] * (encoder.num_budgets - 1))
        place = np.unravel_index(number, [len(depths) for depths in encoder.depths])
        drawn["between"] = [depths[int(i)] for depths, i in zip(encoder.depths, place, strict=True)]
    return drawn


def gated_outputs(head: nn.Module, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's predictions, each image with the budget that the gate chooses for it.

    Args:
        head: with PRO-SCALE's pixel decoder, which has a gate.
        features: the backbone's, ``(B, channels, H, W)`` by level.

    Returns:
        ``pred_logits`` and ``pred_masks``, in the order of the images.
    """
    decoder = head.get_submodule("pixel_decoder")
    gate, encoder = decoder.get_submodule("gate"), decoder.get_submodule("transformer.encoder")
    assert isinstance(decoder, PROSCALE) and isinstance(gate, BudgetGate)
    assert isinstance(encoder, ProgressiveEncoder)
    # The exit with the largest score; a batch is split by exit.
    chosen = gate(decoder.coarsest(features)).argmax(dim=1)
    parts = []
    for number in chosen.unique().tolist():
        images = (chosen == number).nonzero()[:, 0]
        with budget_of(encoder, gate.exits[number]):
            outputs = head({name: feature[images] for name, feature in features.items()})
        parts.append((images, outputs))
    order = torch.cat([images for images, _ in parts]).argsort()
    return {
        name: torch.cat([outputs[name] for _, outputs in parts])[order]
        for name in ("pred_logits", "pred_masks")
    }


@contextmanager
def budget_of(encoder: ProgressiveEncoder, budget: Sequence[int]) -> Iterator[None]:
    """Compute with ``budget`` within the context."""
    before = encoder.budget
    encoder.set_budget(budget)
    try:
        yield
    finally:
        encoder.budget = before


def _shared_uniform(count: int) -> list[float]:
    """Numbers in [0, 1), the same on all ranks, which have to compute the same layers."""
    numbers = torch.rand(count)
    return comm.all_gather(numbers)[0].tolist() if comm.get_world_size() > 1 else numbers.tolist()


def _detached(outputs: Mapping) -> dict:
    """Predictions, the auxiliary ones too, without gradient."""
    masks = {name: outputs[name].detach() for name in ("pred_logits", "pred_masks")}
    return masks | {"aux_outputs": [_detached(aux) for aux in outputs.get("aux_outputs", ())]}
