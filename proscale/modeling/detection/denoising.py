"""Contrastive denoising (DINO, §3.3): queries that start from noised targets and have to find the
way back to them, or, where the noise is larger, to “no object”."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from proscale.modeling.detection.boxes import corners, inverse_sigmoid


@dataclass(frozen=True)
class DenoisingArguments:
    """How much and how strong."""

    number: int  #: pairs of a positive and a negative query of an image, about; 0 for none
    label_noise: float  #: twice the probability with which a label is replaced by a random one
    box_noise: float  #: 1 moves a positive query's corners by up to half of the box's size

    def groups(self, most: int) -> int:
        """Groups of queries of an image with up to ``most`` targets, each of which has all of
        them."""
        return max(1, self.number // max(most, 1))


class DenoisingQueries(NamedTuple):
    """Queries in groups, of which each has m positive ones, then m negative ones, target t of an
    image at place t of both; m is the largest number of targets, places beyond an image's are
    padding."""

    content: Tensor  #: ``(B, P, C)``
    boxes: Tensor  #: ``(B, P, 4)`` before the sigmoid
    mask: Tensor  #: ``(P + Q, P + Q)`` bool, True where a query may not look at another one
    matches: list[tuple[Tensor, Tensor]]  #: of each image, the positive queries and their targets
    groups: int


@torch.no_grad()
def noised_labels(labels: Tensor, num_classes: int, noise: float) -> Tensor:
    """``labels`` ``(…)`` of which a fraction of ``noise / 2`` is drawn anew."""
    drawn = torch.randint_like(labels, num_classes)
    return torch.where(torch.rand_like(labels, dtype=torch.float32) < noise / 2, drawn, labels)


@torch.no_grad()
def noised_boxes(boxes: Tensor, negative: Tensor, noise: float) -> Tensor:
    """Boxes with each corner coordinate moved, by less than half of the box's size times ``noise``
    or, where ``negative``, by once to twice as much.

    ``boxes`` are ``(…, 4)``, fractions of the image, and so is what is returned, within the image;
    ``negative`` is ``(…)`` bool.
    """
    # sign · u · (half of the width or height), u in [0, 1), or in [1, 2) for negatives.
    amount = torch.rand_like(boxes) + negative[..., None]
    sign = torch.randint_like(boxes, 2) * 2 - 1
    half = boxes[..., 2:].tile(2) / 2
    moved = (corners(boxes) + sign * amount * half * noise).clamp(0, 1)
    # Two corners may have changed places; a size is then negative, and has no logit to start from.
    low, high = moved[..., :2], moved[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def denoising_mask(places: int, groups: int, num_queries: int) -> Tensor:
    """``(P + Q, P + Q)`` bool of ``groups`` with ``2 * places`` queries each, P in all, True where
    a query may not look: matching queries not at those of groups, a group at no other one."""
    total = 2 * places * groups
    group = torch.arange(total) // max(2 * places, 1)
    mask = torch.zeros(total + num_queries, total + num_queries, dtype=torch.bool)
    # The answers are in the groups: matching queries must not see them.
    mask[total:, :total] = True
    mask[:total, :total] = group[:, None] != group[None]
    return mask


def contrastive_denoising(
    targets: Sequence[Mapping[str, Tensor]],
    label_enc: nn.Embedding,
    noise: DenoisingArguments,
    *,
    num_queries: int,
    most: int,
    eps: float,
) -> DenoisingQueries:
    """Draw the denoising queries of a batch.

    Args:
        targets: of each image, ``labels`` ``(N,)`` and ``boxes`` ``(N, 4)``, fractions of the
            image.
        label_enc: content of a class; its last row is that of no class, and not drawn.
        num_queries: Q, the matching queries that come behind.
        most: m, at least the largest N; images of a larger batch may have more than ``targets``.
        eps: of the inverse sigmoid.

    Returns:
        the queries, none of them where m is 0.
    """
    groups, device = noise.groups(most), label_enc.weight.device
    positives = torch.arange(groups)[:, None] * 2 * most
    contents, boxes, matches = [], [], []
    for target in targets:
        # Each group has all targets of the image twice: positive and negative, (G, 2, N).
        count = len(target["labels"])
        labels = target["labels"].expand(groups, 2, -1)
        places = target["boxes"].expand(groups, 2, -1, -1)
        negative = torch.tensor([False, True], device=device)[:, None].expand_as(labels)
        labels = noised_labels(labels, label_enc.num_embeddings - 1, noise.label_noise)
        places = noised_boxes(places, negative, noise.box_noise)
        # Into the places of the groups; what is left is padding, (P, C) and (P, 4).
        content = label_enc.weight.new_zeros(groups, 2, most, label_enc.embedding_dim)
        box = torch.zeros(groups, 2, most, 4, device=device)
        content[:, :, :count] = label_enc(labels)
        box[:, :, :count] = inverse_sigmoid(places, eps)
        contents.append(content.flatten(0, 2))
        boxes.append(box.flatten(0, 2))
        # Positive query of group g and target t: g · 2m + t.
        queries = (positives + torch.arange(count)).flatten()
        matches.append((queries, torch.arange(count).repeat(groups)))
    mask = denoising_mask(most, groups, num_queries).to(device)
    return DenoisingQueries(torch.stack(contents), torch.stack(boxes), mask, matches, groups)
