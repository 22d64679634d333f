"""A budget of the encoder for each image (ECO-M2F, §3.3)."""

from collections.abc import Sequence

from torch import Tensor, nn


class BudgetGate(nn.Module):
    """Scores budgets by one linear layer over the mean of the coarsest level's projected tokens.

    These are what the encoder begins with, so that the choice costs next to nothing.

    Args:
        d_model: width of the tokens.
        exits: the budgets to choose from.
    """

    def __init__(self, d_model: int, exits: Sequence[Sequence[int]]):
        super().__init__()
        self.exits = [tuple(budget) for budget in exits]
        self.score = nn.Linear(d_model, len(self.exits))

    def forward(self, feature: Tensor) -> Tensor:
        """``feature`` ``(B, C, H, W)``; returns scores ``(B, exits)``, the largest is chosen."""
        return self.score(mean_token(feature))


def mean_token(feature: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(B, C)`` float32."""
    return feature.float().mean(dim=(2, 3))
