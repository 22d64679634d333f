"""The feed-forward network of a transformer layer (Attention Is All You Need, §3.3)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from proscale.ops.tracing import should_tile

# So many tokens' hidden activations, 4 MiB at a width of 1024, stay in a CPU's cache.
BLOCK_TOKENS = 1024


def feed_forward(
    tokens: Tensor,
    linear1: nn.Linear,
    linear2: nn.Linear,
    dropout: Callable[[Tensor], Tensor],
) -> Tensor:
    """``linear2(dropout(relu(linear1(tokens))))``; ``tokens`` ``(…, C)``."""

    if not should_tile(tokens):
        # Autograd copies a linear layer's output, a view, when that is changed in place.
        return linear2(dropout(linear1(tokens).relu()))
    blocks = tokens.flatten(0, -2).split(BLOCK_TOKENS)
    updates = [linear2(dropout(linear1(block).relu_())) for block in blocks]
    return torch.cat(updates).view_as(tokens)
