"""Choose the best of a number of tokens that follows the image's size."""

import math

from torch import Tensor
from torch.nn import functional as F

from proscale.ops.tracing import use_reference


def largest(scores: Tensor, count: int) -> Tensor:
    """Places of the largest of ``(B, N)`` scores, ``(B, K)``: ``count`` or, if N is less, N."""
    length = scores.shape[1]
    if not use_reference():
        return scores.topk(min(count, length), dim=1).indices
    # Exported files, whose N follows the image's size, have a constant K: should there be too few
    # tokens, the last one is chosen again.
    padded = F.pad(scores, (0, count), value=-math.inf)
    return padded.topk(count, dim=1).indices.clamp(max=length - 1)
