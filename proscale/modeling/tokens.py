"""Maps as sequences of tokens, row by row, and back."""

from collections.abc import Sequence

from torch import Tensor


def to_map(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """``(B, H·W, C)`` as ``(B, C, H, W)`` in channels-last layout, without a copy."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def to_tokens(maps: Tensor) -> Tensor:
    """``(B, C, H, W)`` as ``(B, H·W, C)``, contiguous; without a copy where channels are last."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)
