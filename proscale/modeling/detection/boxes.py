"""Boxes within a detector: (cx, cy, w, h), fractions of the image, or logits of these.

A layer adds to a box before the sigmoid, so that the next one is within the image (Deformable DETR,
§4.2).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from proscale.modeling.pixel_decoders.deformable_encoder import TokenPlan

#: Orders in which a box's numbers are encoded.
XYWH, YXWH = (0, 1, 2, 3), (1, 0, 2, 3)
# Size of the box that a token of the finest level proposes; it doubles from level to level.
PROPOSAL_SIZE = 0.05
# Proposals nearer to the border than this have no finite logits to start from.
MARGIN = 0.01


def inverse_sigmoid(probability: Tensor, eps: float) -> Tensor:
    """``log(p / (1 - p))``, both terms at least ``eps``."""
    # Gradients of boxes at the border of the image stay finite.
    return (probability.clamp(eps, 1.0) / (1 - probability).clamp(eps, 1.0)).log()


def sine_box_embedding(boxes: Tensor, channels: int, order: Sequence[int]) -> Tensor:
    """Sine encoding of the four numbers of each box (DAB-DETR, §4.1).

    Args:
        boxes: ``(…, 4)`` in [0, 1], float32.
        channels: of the encoding, C / 2 for each number of a model of width C.
        order: places of the numbers, one after another.

    Returns:
        ``(…, 4 * channels)``, values in [-1, 1].
    """
    # Angle 2π · v / 10000^(2⌊k / 2⌋ / d) in channel k of d: sines and cosines in alternation.
    exponent = torch.arange(channels, device=boxes.device) // 2 * 2 / channels
    angles = boxes[..., order, None] * (2 * math.pi) / 10000.0**exponent
    encoded = torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1)
    return encoded.flatten(-3)


def propose_boxes(plan: TokenPlan) -> tuple[Tensor, Tensor]:
    """The box that each token proposes: around its cell's centre, larger on coarser levels
    (Deformable DETR, §A.4).

    Returns:
        ``(B or 1, S, 4)`` before the sigmoid, +∞ where a proposal is invalid, because it is at the
        border of the image or in the padding; and ``(B or 1, S)`` bool, the valid ones.
    """
    # Levels lie coarse to fine; the finest has number 0.
    centres = plan.reference_points
    sizes = torch.cat(
        [
            centres.new_full((length, 2), PROPOSAL_SIZE * 2.0**number)
            for number, length in reversed(list(enumerate(reversed(plan.lengths))))
        ]
    )
    boxes = torch.cat((centres, sizes.expand_as(centres)), dim=-1)
    valid = ((boxes > MARGIN) & (boxes < 1 - MARGIN)).all(-1)
    # Not clamped: the logits of valid proposals are within log 99.
    logits = (boxes / (1 - boxes)).log()
    return logits.masked_fill(~valid[..., None], math.inf), valid


def relative_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """(x0, y0, x1, y1) in pixels of an image of ``size`` (height, width) as (cx, cy, w, h) in
    fractions of it, ``(N, 4)`` both."""
    height, width = size
    x0, y0, x1, y1 = boxes.float().unbind(-1)
    return torch.stack(
        ((x0 + x1) / (2 * width), (y0 + y1) / (2 * height), (x1 - x0) / width, (y1 - y0) / height),
        dim=-1,
    )


def corners(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) as (x0, y0, x1, y1), ``(…, 4)`` both."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def keep_best(
    logits: Tensor, boxes: Tensor, size: Sequence[int], limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``limit`` best of all pairs of query and class (Deformable DETR, as published), without
    non-maximum suppression.

    Args:
        logits, boxes: ``(Q, K)``; ``(Q, 4)``, fractions of the image.
        size: (height, width) of the results.

    Returns:
        scores ``(N,)`` in (0, 1), falling; classes ``(N,)``; (x0, y0, x1, y1) ``(N, 4)`` in pixels,
        which may reach beyond the image.
    """
    # One list of Q·K scores: a query may answer for several classes.
    scores = logits.float().sigmoid().flatten()
    scores, places = scores.topk(min(limit, len(scores)))
    queries = places // logits.shape[1]
    height, width = size
    scale = boxes.new_tensor([width, height, width, height])
    return scores, places % logits.shape[1], corners(boxes[queries]) * scale
