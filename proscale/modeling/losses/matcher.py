"""Bipartite matching of predictions and targets (DETR, §3.1), masks compared at random points."""

import numpy as np
import torch
from detectron2.projects.point_rend.point_features import point_sample
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F


class HungarianMatcher(nn.Module):
    """Find the assignment of queries to targets with the least total cost.

    Args:
        cost_class: weight of the negative probability of the target's class.
        cost_mask: weight of the mean binary cross-entropy over the points.
        cost_dice: weight of the dice loss over the points.
        num_points: points per image; all its queries and targets share them.
        cost_place: added where a query with a place is matched to a target that is not there.
    """

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

    @torch.no_grad()
    def forward(
        self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Match every image on its own.

        Args:
            outputs: ``pred_logits`` ``(B, Q, K + 1)`` and ``pred_masks`` ``(B, Q, H, W)`` logits;
                optionally ``places`` ``(B, P, 2)`` of the last P queries, as (x, y) in [0, 1].
            targets: of each image, ``labels`` ``(N,)`` and ``masks`` ``(N, H', W')``, 0 or 1.

        Returns:
            for each image, the matched queries in rising order and their targets: two int64 CPU
            tensors of length ``min(Q, N)``.

        Raises:
            FloatingPointError: a cost is not finite; tells which term, of which image.
        """
        matches = []
        places = outputs.get("places") if self.cost_place else None
        for image, (logits, masks, target, place) in enumerate(
            zip(
                outputs["pred_logits"],
                outputs["pred_masks"],
                targets,
                [None] * len(targets) if places is None else places,
                strict=True,
            )
        ):
            # Images have different numbers of targets: one assignment problem each.
            try:
                matches.append(self._match(logits, masks, target["labels"], target["masks"], place))
            except FloatingPointError as error:
                raise FloatingPointError(f"{error} of image {image} of the batch") from None
        return matches

    def _match(
        self,
        logits: Tensor,
        masks: Tensor,
        labels: Tensor,
        true_masks: Tensor,
        places: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        # Without targets every query is “no object”.
        if len(labels) == 0:
            empty = torch.zeros(0, dtype=torch.int64)
            return empty, empty
        # The same K random points for all predictions and targets of the image.
        points = torch.rand(1, self.num_points, 2, device=masks.device)
        # Float32 whatever the autocast: costs of half precision tie and overflow.
        with torch.autocast(masks.device.type, enabled=False):
            # Bilinear samples of all masks: (Q, K) predicted and (N, K) true.
            predicted, true = (
                point_sample(m[None].float(), points, align_corners=False)[0]
                for m in (masks, true_masks)
            )
            # Costs of every pair, (Q, N): λ_cls L_cls + λ_ce L_ce + λ_dice L_dice. For classes
            # -p(c), without the logarithm, is of the size of the others (DETR, §3.1).
            terms = {
                "class": self.cost_class * -logits.float().softmax(-1)[:, labels],
                "mask": self.cost_mask * pairwise_mask_cost(predicted, true),
                "dice": self.cost_dice * pairwise_dice_cost(predicted, true),
            }
            cost = terms["class"] + terms["mask"] + terms["dice"]
            # A spatial prior: queries that have a place are for targets there (DeFCN, §3.1).
            if places is not None:
                there = point_sample(true_masks[None].float(), places[None], align_corners=False)
                cost[-len(places) :] += self.cost_place * (1 - there[0].T)
            cost = cost.cpu().numpy()
        # An assignment of costs that are not finite would be arbitrary: tell the term at fault.
        if not np.isfinite(cost).all():
            wrong = [f"{name} cost" for name, term in terms.items() if not term.isfinite().all()]
            raise FloatingPointError(" and ".join(wrong or ["sum of the costs"]))
        # The Hungarian algorithm, on the CPU.
        queries, matched = linear_sum_assignment(cost)
        return torch.as_tensor(queries), torch.as_tensor(matched)


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
