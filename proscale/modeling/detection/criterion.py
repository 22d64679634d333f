"""Matching and losses of boxes (DETR, §3.1 and §A.2, with the focal loss of Deformable DETR)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import (
    generalized_box_iou,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from proscale.modeling.detection.boxes import corners
from proscale.modeling.losses.matcher import BipartiteMatcher
from proscale.modeling.losses.predictions import (
    Matches,
    list_predictions,
    match_predictions,
    means_over_step,
)

# Of the focal loss (Lin et al., ICCV 2017): weight of positives, and the exponent.
ALPHA, GAMMA = 0.25, 2.0
# Below all areas of boxes.
TINY = 1e-12


class DetectionMatcher(BipartiteMatcher):
    """The matcher of boxes: of ``pred_logits`` ``(B, Q, K)`` and ``pred_boxes`` ``(B, Q, 4)``, with
    targets of ``labels`` ``(N,)`` and ``boxes`` ``(N, 4)``; boxes are (cx, cy, w, h), fractions of
    the image.

    Args:
        cost_class: weight of the focal cost of the target's class.
        cost_bbox: weight of the L1 distance of the boxes.
        cost_giou: weight of their negative generalised IoU.
    """

    reads = ("pred_logits", "pred_boxes")

    def __init__(self, cost_class: float = 2.0, cost_bbox: float = 5.0, cost_giou: float = 2.0):
        super().__init__()
        if cost_class == cost_bbox == cost_giou == 0:
            raise ValueError(
                "all of cost_class, cost_bbox and cost_giou are 0: nothing to match by"
            )
        self.cost_class, self.cost_bbox, self.cost_giou = cost_class, cost_bbox, cost_giou

    def costs(self, prediction: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`BipartiteMatcher.costs`."""
        # The focal loss of the target's class being there, minus that of it not being there.
        probability = prediction["pred_logits"].sigmoid()[:, target["labels"]]
        there = ALPHA * (1 - probability) ** GAMMA * -(probability + 1e-8).log()
        absent = (1 - ALPHA) * probability**GAMMA * -(1 - probability + 1e-8).log()
        boxes, true = prediction["pred_boxes"], target["boxes"]
        return {
            "class": self.cost_class * (there - absent),
            "box": self.cost_bbox * torch.cdist(boxes, true, p=1),
            "GIoU": -self.cost_giou * generalized_box_iou(corners(boxes), corners(true)),
        }


class DetectionCriterion(nn.Module):
    """Match predictions to targets and compute their losses, for each auxiliary output as well.

    Args:
        num_classes: K.
        matcher: returns the matched (queries, targets) of every image.
        weight_dict: factor of ``loss_ce``, ``loss_bbox`` and ``loss_giou``, see :meth:`weigh`.
        focal_alpha: weight of the positives in the focal loss, 1 minus that of the negatives.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: dict[str, float],
        focal_alpha: float = ALPHA,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.focal_alpha = focal_alpha

    def forward(
        self,
        outputs: dict,
        targets: list[dict[str, Tensor]],
        target_counts: Sequence[int] | None = None,
        *,
        matches: Matches | None = None,
        repeats: int = 1,
    ) -> dict[str, Tensor]:
        """Losses of all predictions.

        Args:
            outputs: ``pred_logits`` ``(B, Q, K)``, ``pred_boxes`` ``(B, Q, 4)``, and optionally
                ``aux_outputs``, a list of the same. Boxes are (cx, cy, w, h), fractions of the
                image.
            targets: of each image, ``labels`` ``(N,)`` and ``boxes`` ``(N, 4)``.
            target_counts: number of targets of every image that the optimiser's step sees on this
                process, when these are more than ``targets``.
            matches: queries and their targets, the same for all predictions; None matches each.
            repeats: how many queries each target has.

        Returns:
            unweighted scalars ``loss_ce``, ``loss_bbox``, ``loss_giou``, and with the suffix
            ``_0``, ``_1``, … those of the auxiliary outputs: sums over queries, divided by the
            number of targets in a batch of this size, on average over all processes, at least one,
            times ``repeats``.

        Raises:
            FloatingPointError: a matching cost is not finite; tells which term, of which image and
                output.
        """
        if target_counts is None:
            target_counts = [len(target["labels"]) for target in targets]
        sums = [sum(target_counts)]
        count = means_over_step(sums, len(target_counts), outputs["pred_logits"])[0].clamp(min=1)
        # Step 1: bipartite matching of every prediction, the auxiliary ones too.
        predictions, suffixes = list_predictions(outputs)
        if matches is None:
            found = match_predictions(self.matcher, outputs, targets)
        else:
            found = [matches] * len(predictions)
        losses = {}
        # Sums over thousands of queries need float32.
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            for prediction, suffix, pairs in zip(predictions, suffixes, found, strict=True):
                for name, loss in self._losses(prediction, targets, pairs).items():
                    losses[name + suffix] = loss / (count * repeats)
        return losses

    def _losses(self, prediction: dict, targets: list, matches: Matches) -> dict[str, Tensor]:
        """Sums over all queries of the batch."""
        logits, boxes = prediction["pred_logits"].float(), prediction["pred_boxes"].float()
        # Step 2: classes of all queries. Each class is a decision of its own (B, Q, K): one where
        # the query has a target of it, zero everywhere for “no object”.
        classes = torch.zeros_like(logits)
        for image, (target, (queries, matched)) in enumerate(zip(targets, matches, strict=True)):
            classes[image, queries, target["labels"][matched]] = 1.0
        # Step 3: boxes of the matched queries, image by image, (N, 4) each.
        predicted = torch.cat(
            [image[queries] for image, (queries, _) in zip(boxes, matches, strict=True)]
        )
        true = torch.cat(
            [t["boxes"][matched] for t, (_, matched) in zip(targets, matches, strict=True)]
        )
        giou = generalized_box_iou_loss(
            corners(predicted), corners(true), reduction="sum", eps=TINY
        )
        return {
            "loss_ce": sigmoid_focal_loss(
                logits, classes, alpha=self.focal_alpha, gamma=GAMMA, reduction="sum"
            ),
            "loss_bbox": F.l1_loss(predicted, true, reduction="sum"),
            "loss_giou": giou,
        }

    def weigh(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses times the weight of their kind, whatever the suffix."""
        return {
            name: loss * self.weight_dict["_".join(name.split("_")[:2])]
            for name, loss in losses.items()
        }
