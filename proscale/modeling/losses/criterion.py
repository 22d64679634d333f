"""The set criterion: classes of all queries, masks of the matched ones (Mask2Former, §3.3)."""

from collections.abc import Sequence

import torch
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.modeling.losses.predictions import (
    Matches,
    list_predictions,
    match_predictions,
    means_over_step,
)


class SetCriterion(nn.Module):
    """Match predictions to targets and compute their losses, for each auxiliary output as well.

    Args:
        num_classes: K, without “no object”.
        matcher: returns the matched (queries, targets) of every image.
        weight_dict: factor of each loss by name; the caller applies it.
        eos_coef: weight of “no object” in the class loss.
        losses: which to compute, of ``"labels"`` and ``"masks"``.
        num_points: points per mask.
        oversample_ratio: candidates drawn per point.
        importance_sample_ratio: fraction of points taken where the prediction is least certain.
    """

    empty_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: nn.Module,
        weight_dict: dict[str, float],
        eos_coef: float,
        losses: Sequence[str],
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
    ):
        super().__init__()
        if not set(losses) <= {"labels", "masks"}:
            raise ValueError(f"losses is {list(losses)}: expected labels, masks or both")
        if oversample_ratio < 1:
            raise ValueError(f"oversample_ratio is {oversample_ratio}: expected numbers from 1")
        if not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                f"importance_sample_ratio is {importance_sample_ratio}: expected numbers in [0, 1]"
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = weight_dict
        self.eos_coef = eos_coef
        self.losses = tuple(losses)
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        # Class weights of the cross-entropy: one, and eos_coef for “no object”.
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = eos_coef
        self.register_buffer("empty_weight", empty_weight)

    def forward(
        self,
        outputs: dict,
        targets: list[dict[str, Tensor]],
        target_counts: Sequence[int] | None = None,
        *,
        matches: list[Matches] | None = None,
        teacher: dict | None = None,
    ) -> dict[str, Tensor]:
        """Losses of all predictions.

        Losses are normalised by the mean number of targets per image, over all processes. Thus the
        parts of a batch, weighted by their numbers of images, add up to the whole batch's losses.

        Args:
            outputs: ``pred_logits`` ``(B, Q, K + 1)``, ``pred_masks`` ``(B, Q, H, W)`` logits, and
                optionally ``aux_outputs``, a list of the same. If there are ``mask_features``
                ``(B, C, H, W)``, and in every prediction ``mask_embed`` ``(B, Q, C)``, whose
                product the masks are, gradients take the way through these, where only the matched
                queries cost anything; else through ``pred_masks``.
            targets: of each image, ``labels`` ``(N,)`` and ``masks`` ``(N, H', W')``, 0 or 1.
            target_counts: number of targets of every image that the optimiser's step sees on this
                process, when these are more than ``targets``.
            matches: what :meth:`match` has found; None matches ``outputs``.
            teacher: predictions like ``outputs``, whose queries correspond, to be distilled.

        Returns:
            unweighted scalars ``loss_ce``, ``loss_mask``, ``loss_dice``, and with the suffix
            ``_0``, ``_1``, … those of the auxiliary outputs. With a teacher as well
            ``loss_ce_distill``, the divergence of its class probabilities from the outputs', mean
            over the queries, and ``loss_mask_distill``, the binary cross-entropy towards its masks
            where ``loss_mask`` has its points.

        Raises:
            FloatingPointError: a matching cost is not finite; tells which term, of which image and
                output.
        """
        if target_counts is None:
            target_counts = [len(target["labels"]) for target in targets]
        normaliser = self._normalise(outputs["pred_logits"], target_counts)
        predictions, suffixes = list_predictions(outputs)
        teachers = [None] * len(predictions) if teacher is None else list_predictions(teacher)[0]
        # Step 1: bipartite matching of every prediction, the auxiliary ones too.
        if matches is None:
            matches = self.match(outputs, targets)
        losses = {}
        # Masks are sampled as numbers; converted once for all predictions.
        targets = [target | {"masks": target["masks"].float()} for target in targets]
        # Point sampling and sums over thousands of points need float32.
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            # Step 2: classes of all queries.
            if "labels" in self.losses:
                for suffix, prediction, found in zip(suffixes, predictions, matches, strict=True):
                    loss = self._label_loss(prediction["pred_logits"], targets, found)
                    losses["loss_ce" + suffix] = loss / normaliser["labels"]
                for suffix, prediction, other in zip(suffixes, predictions, teachers, strict=True):
                    if other is not None:
                        logits = prediction["pred_logits"], other["pred_logits"]
                        losses["loss_ce_distill" + suffix] = class_divergence(*logits)
            # Step 3: masks of the matched queries, at sampled points.
            if "masks" in self.losses:
                masks = matched_masks(predictions, matches)
                for suffix, predicted, found, other in zip(
                    suffixes, masks, matches, teachers, strict=True
                ):
                    taught = None if other is None else _matched_rows(other["pred_masks"], found)
                    terms = self._mask_losses(predicted, targets, found, taught)
                    for name, term in terms.items():
                        losses[name + suffix] = term / normaliser["masks"]
        return losses

    def match(self, outputs: dict, targets: list[dict[str, Tensor]]) -> list[Matches]:
        """Match every prediction, the last one first, then the auxiliary ones; see
        :meth:`forward`."""
        return match_predictions(self.matcher, outputs, targets)

    def _normalise(self, logits: Tensor, target_counts: Sequence[int]) -> dict[str, Tensor]:
        """Divisors of the losses of a batch like ``logits``, ``(B, Q, K + 1)``."""
        batch, queries = logits.shape[:2]
        # Targets and matched queries, of all parts of the optimiser's step.
        sums = [sum(target_counts), sum(min(count, queries) for count in target_counts)]
        targets, matched = means_over_step(sums, len(target_counts), logits)
        # Mask losses are averaged over targets, at least one; the class loss over its weights.
        return {
            "masks": targets.clamp(min=1),
            "labels": matched + self.eos_coef * (batch * queries - matched),
        }

    def _label_loss(self, logits: Tensor, targets: list, matches: Matches) -> Tensor:
        # (B, Q): the matched target's class, “no object” for all other queries.
        classes = torch.full(
            logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device
        )
        for image, (target, (queries, matched)) in enumerate(zip(targets, matches, strict=True)):
            classes[image, queries] = target["labels"][matched]
        # “No object” weighs eos_coef. The sum of the weights is the same on every process.
        return F.cross_entropy(
            logits.float().transpose(1, 2), classes, self.empty_weight, reduction="sum"
        )

    def _mask_losses(
        self, predicted: Tensor, targets: list, matches: Matches, taught: Tensor | None
    ) -> dict[str, Tensor]:
        """``predicted`` and the teacher's ``taught``: ``(N, H, W)`` logits of the matched queries,
        image by image."""
        # Points of each mask by importance sampling, (N, P, 2).
        predicted = predicted[:, None]  # one mask a channel-first map
        points = uncertain_points(
            predicted.detach(),
            self.num_points,
            oversample_ratio=self.oversample_ratio,
            importance_sample_ratio=self.importance_sample_ratio,
        )
        places = points.split([len(matched) for _, matched in matches])
        # Targets and predictions at these points: (N, P) each.
        true = torch.cat(
            [
                sample_targets(target["masks"], matched.to(points.device), place)
                for target, (_, matched), place in zip(targets, matches, places, strict=True)
            ]
        )
        # Gradients flow through the samples of the predictions, not through the choice of points.
        logits = point_sample(predicted, points, align_corners=False).squeeze(1)
        losses = {"loss_mask": mask_loss(logits, true), "loss_dice": dice_loss(logits, true)}
        if taught is not None:
            soft = point_sample(taught[:, None], points, align_corners=False).squeeze(1).sigmoid()
            losses["loss_mask_distill"] = mask_loss(logits, soft)
        return losses


def matched_masks(predictions: Sequence[dict], matches: Sequence[Matches]) -> list[Tensor]:
    """The matched queries' masks of each prediction, image by image: ``(N, H, W)`` float32 logits.

    ``predictions`` are those of :meth:`SetCriterion.forward`, ``outputs`` first.
    """
    # Without the factors of the masks: the matched rows of every prediction's masks.
    features = predictions[0].get("mask_features")
    if features is None:
        return [
            _matched_rows(prediction["pred_masks"], found)
            for prediction, found in zip(predictions, matches, strict=True)
        ]
    # Masks of the matched queries alone, made anew. One product an image for all predictions: the
    # gradient of the features is as large as they.
    by_image = []
    for image, feature in enumerate(features.float()):
        embeddings = [
            prediction["mask_embed"][image, found[image][0]].float()
            for prediction, found in zip(predictions, matches, strict=True)
        ]
        masks = (torch.cat(embeddings) @ feature.flatten(1)).unflatten(1, feature.shape[1:])
        by_image.append(masks.split([len(embedding) for embedding in embeddings]))
    return [torch.cat(masks) for masks in zip(*by_image, strict=True)]


def _matched_rows(masks: Tensor, matches: Matches) -> Tensor:
    """Of ``(B, Q, H, W)`` the matched queries' masks, image by image: ``(N, H, W)`` float32."""
    rows = [image[queries] for image, (queries, _) in zip(masks, matches, strict=True)]
    return torch.cat(rows).float()


def class_divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the teacher's class probabilities from the logits', mean over
    the queries: ``(B, Q, K + 1)`` twice to a scalar."""
    predicted, taught = logits.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return (taught.exp() * (taught - predicted)).sum(-1).mean()


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy, mean over points, sum over masks: ``(N, P)`` twice to a scalar."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum()


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss (V-Net, §3, with one added above and below), summed over masks: ``(N, P)`` twice
    to a scalar."""
    # 1 - (2 Σ p·t + 1) / (Σ p + Σ t + 1), no loss where both are empty.
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum(-1)
    total = probability.sum(-1) + targets.sum(-1)
    return (1 - (overlap + 1) / (total + 1)).sum()


@torch.no_grad()
def uncertain_points(
    logits: Tensor, num_points: int, *, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """Random points of each mask, more where its prediction is least certain (PointRend, §3.1).

    Args:
        logits: ``(N, 1, H, W)``.
        num_points: P, of each mask.
        oversample_ratio: candidates drawn per point.
        importance_sample_ratio: fraction of the points that are the least certain candidates, in
            any order; the others are drawn anew, uniformly.

    Returns:
        ``(N, P, 2)`` as (x, y) in [0, 1).
    """
    # k·N random candidates for N points; a logit near zero is uncertain.
    count = len(logits)
    # (N, k·P, 2), in [0, 1), where a place covers the whole map.
    candidates = torch.rand(count, int(num_points * oversample_ratio), 2, device=logits.device)
    certainty = point_sample(logits, candidates, align_corners=False)[:, 0].abs()
    num_uncertain = int(num_points * importance_sample_ratio)
    # Half of the time of finding the least is putting them in order.
    least = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices
    uncertain = candidates.gather(1, least[..., None].expand(-1, -1, 2))
    # β·N points where the prediction is least certain, the others uniform.
    others = torch.rand(count, num_points - num_uncertain, 2, device=logits.device)
    return torch.cat((uncertain, others), dim=1)


def sample_targets(masks: Tensor, matched: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples, ``(M, P)``, of every target's mask at its prediction's points.

    ``masks`` are ``(N, H, W)`` numbers, ``matched`` ``(M,)`` distinct targets, and ``points``
    ``(M, P, 2)``, as (x, y) in [0, 1], those of the targets as ``matched`` has them.
    """
    # One sample for each matched pair. Masks are much larger than their points, so that these are
    # put in the masks' order.
    order = matched.argsort()
    if len(matched) < len(masks):
        masks = masks[matched[order]]
    samples = point_sample(masks[:, None], points[order], align_corners=False)[:, 0]
    return samples[order.argsort()]
