"""Points where masks are compared with their targets (PointRend, §3.1)."""

import torch
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor


@torch.no_grad()
def uncertain_points(
    logits: Tensor, num_points: int, *, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """Random points of each mask, more where its prediction is least certain.

    Args:
        logits: ``(N, 1, H, W)``.
        num_points: P, of each mask.
        oversample_ratio: candidates drawn per point.
        importance_sample_ratio: share of the points that are the least certain candidates, in any
            order; the others are drawn anew, uniformly.

    Returns:
        ``(N, P, 2)`` as (x, y) in [0, 1).
    """
    count = len(logits)
    candidates = torch.rand(count, int(num_points * oversample_ratio), 2, device=logits.device)
    certainty = point_sample(logits, candidates, align_corners=False)[:, 0].abs()
    num_uncertain = int(num_points * importance_sample_ratio)
    # Half of the time of finding the least is putting them in order.
    least = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices
    uncertain = candidates.gather(1, least[..., None].expand(-1, -1, 2))
    others = torch.rand(count, num_points - num_uncertain, 2, device=logits.device)
    return torch.cat((uncertain, others), dim=1)


def sample_targets(masks: Tensor, matched: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of every target's mask at the points of the prediction matched to it.

    Args:
        masks: ``(N, H, W)`` numbers.
        matched: ``(M,)`` targets, distinct.
        points: ``(M, P, 2)`` as (x, y) in [0, 1], of the targets as ``matched`` has them.

    Returns:
        ``(M, P)``.
    """
    # Masks are much larger than their points, so that these are put in the masks' order.
    order = matched.argsort()
    if len(matched) < len(masks):
        masks = masks[matched[order]]
    samples = point_sample(masks[:, None], points[order], align_corners=False)[:, 0]
    return samples[order.argsort()]
