"""Bipartite matching of predictions and targets (DETR, §3.1), masks compared at random points."""

import numpy as np
import torch
from detectron2.projects.point_rend.point_features import point_sample
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.ops.fused import sum_tensors


class BipartiteMatcher(nn.Module):
    """Find the assignment of queries to targets with the least total cost; a subclass has the
    costs."""

    #: Predictions that :meth:`costs` reads, where they are there.
    reads: tuple[str, ...]

    def costs(self, prediction: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
        """Terms of the cost of every pair, ``(Q, N)`` each by name, of one image."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(
        self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Match every image on its own.

        Args:
            outputs: predictions ``(B, Q, …)`` by name, see the class.
            targets: of each image, ``labels`` ``(N,)`` and what the costs read besides.

        Returns:
            for each image, the matched queries in rising order and their targets: two int64 CPU
            tensors of length ``min(Q, N)``.

        Raises:
            FloatingPointError: a cost is not finite; tells which term, of which image.
        """
        matches = []
        for image, target in enumerate(targets):
            # Images have different numbers of targets: one assignment problem each.
            try:
                reads = (name for name in self.reads if outputs.get(name) is not None)
                prediction = {name: outputs[name][image] for name in reads}
                matches.append(self._match(prediction, target))
            except FloatingPointError as error:
                raise FloatingPointError(f"{error} of image {image} of the batch") from None
        return matches

    def _match(
        self, prediction: dict[str, Tensor], target: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        # Without targets every query is “no object”.
        if len(target["labels"]) == 0:
            empty = torch.zeros(0, dtype=torch.int64)
            return empty, empty
        # Float32 whatever the autocast: costs of half precision tie and overflow.
        with torch.autocast(target["labels"].device.type, enabled=False):
            terms = self.costs({k: v.float() for k, v in prediction.items()}, target)
            cost = sum_tensors(list(terms.values())).cpu().numpy()
        # An assignment of costs that are not finite would be arbitrary: tell the term at fault.
        if not np.isfinite(cost).all():
            wrong = [f"{name} cost" for name, term in terms.items() if not term.isfinite().all()]
            raise FloatingPointError(" and ".join(wrong or ["sum of the costs"]))
        # The Hungarian algorithm, on the CPU.
        queries, matched = linear_sum_assignment(cost)
        return torch.as_tensor(queries), torch.as_tensor(matched)


class HungarianMatcher(BipartiteMatcher):
    """The matcher of masks: of ``pred_logits`` ``(B, Q, K + 1)`` and ``pred_masks``
    ``(B, Q, H, W)`` logits, with targets of ``labels`` ``(N,)`` and ``masks`` ``(N, H', W')``, 0 or
    1; optionally of ``places`` ``(B, P, 2)`` of the last P queries, as (x, y) in [0, 1].

    Args:
        cost_class: weight of the negative probability of the target's class.
        cost_mask: weight of the mean binary cross-entropy over the points.
        cost_dice: weight of the dice loss over the points.
        num_points: points per image; all its queries and targets share them.
        cost_place: added where a query with a place is matched to a target that is not there.
    """

    reads = ("pred_logits", "pred_masks", "places")

    def __init__(
        self,
        cost_class: float = 1,
        cost_mask: float = 1,
        cost_dice: float = 1,
        num_points: int = 0,
        cost_place: float = 0,
    ):
        super().__init__()
        if cost_class == cost_mask == cost_dice == 0:
            raise ValueError(
                "all of cost_class, cost_mask and cost_dice are 0: nothing to match by"
            )
        if num_points < 1:
            raise ValueError(f"num_points is {num_points}: expected whole numbers from 1")
        self.cost_class, self.cost_mask, self.cost_dice = cost_class, cost_mask, cost_dice
        self.num_points = num_points
        self.cost_place = cost_place

    def costs(self, prediction: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`BipartiteMatcher.costs`."""
        masks = prediction["pred_masks"]
        # The same K random points for all predictions and targets of the image.
        points = torch.rand(1, self.num_points, 2, device=masks.device)
        # Bilinear samples of all masks: (Q, K) predicted and (N, K) true.
        predicted, true = (
            point_sample(m[None].float(), points, align_corners=False)[0]
            for m in (masks, target["masks"])
        )
        # Costs of every pair, (Q, N): λ_cls L_cls + λ_ce L_ce + λ_dice L_dice. For classes -p(c),
        # without the logarithm, is of the size of the others (DETR, §3.1).
        probability = prediction["pred_logits"].softmax(-1)[:, target["labels"]]
        terms = {
            "class": -self.cost_class * probability,
            "mask": self.cost_mask * pairwise_mask_cost(predicted, true),
            "dice": self.cost_dice * pairwise_dice_cost(predicted, true),
        }
        # A spatial prior: queries that have a place are for targets there (DeFCN, §3.1).
        if self.cost_place and "places" in prediction:
            places, queries = prediction["places"], len(masks)
            there = point_sample(target["masks"][None].float(), places[None], align_corners=False)
            absent = 1 - there[0].T
            terms["place"] = self.cost_place * F.pad(absent, (0, 0, queries - len(places), 0))
        return terms


def pairwise_mask_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of every pair: ``(Q, P)`` and ``(N, P)`` to ``(Q, N)``."""
    # -log σ(x) = softplus(-x) and -log(1 - σ(x)) = softplus(x), summed over P points.
    # softplus(x) where the target is zero, softplus(-x) = softplus(x) - x where it is one.
    return (F.softplus(logits).sum(1)[:, None] - logits @ targets.T) / logits.shape[1]


def pairwise_dice_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of every pair: ``(Q, P)`` and ``(N, P)`` to ``(Q, N)``, values in [0, 1)."""
    # 1 - (2 Σ p·t + 1) / (Σ p + Σ t + 1)
    probability = logits.sigmoid()
    overlap = 2 * probability @ targets.T
    total = probability.sum(-1)[:, None] + targets.sum(-1)[None]
    return 1 - (overlap + 1) / (total + 1)
