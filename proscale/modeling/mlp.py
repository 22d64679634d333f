"""The multi-layer perceptron of DETR's heads."""

from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLUs between them; ``widths`` from the input's to the output's."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    @property
    def last(self) -> nn.Linear:
        """The layer that makes the output."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """``(…, widths[0])`` to ``(…, widths[-1])``."""
        # No activation after the last layer.
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)
