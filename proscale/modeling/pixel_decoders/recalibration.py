"""Token Re-Calibration (PRO-SCALE, §3): gates for coarse tokens, read from the finest level.

``tokens · sigmoid(temperature · f(finest level, resized))``, where f is linear over the channels.

The released weights were trained with a reading of tokens as maps that does not transpose: the
memory of a ``(B, H·W, C)`` tensor is taken for ``(B, C, H, W)``. They only give their published
quality with it, so both readings exist.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from proscale.modeling.tokens import to_map, to_tokens

LAYOUTS = ("released", "transposed")


class TokenRecalibration(nn.Module):
    """Gate a level's tokens by the finest level's.

    Args:
        d_model: width of the tokens.
        convolution: f is a 1x1 convolution of the resized map; otherwise a linear layer on its
            tokens. Under the transposed layout both compute the same function.
        temperature: factor before the sigmoid.
        layout: ``"released"`` or ``"transposed"``, see above.
    """

    def __init__(self, d_model: int, *, convolution: bool, temperature: float, layout: str):
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}: expected {' or '.join(LAYOUTS)}")
        self.ops = nn.Conv2d(d_model, 1, kernel_size=1) if convolution else nn.Linear(d_model, 1)
        nn.init.xavier_uniform_(self.ops.weight)
        self.convolution, self.temperature, self.layout = convolution, temperature, layout

    def forward(
        self,
        tokens: Tensor,
        spatial_shape: tuple[int, int],
        finest: Tensor,
        finest_shape: tuple[int, int],
    ) -> Tensor:
        """``tokens`` ``(B, h·w, C)`` and ``finest`` ``(B, H·W, C)``; returns ``(B, h·w, C)``."""
        guide = F.interpolate(
            self._to_map(finest, finest_shape),
            size=spatial_shape,
            mode="bilinear",
            align_corners=False,
        )
        if self.convolution:
            gate = (self.temperature * self.ops(guide)).sigmoid()
            return self._to_tokens(self._to_map(tokens, spatial_shape) * gate)
        return tokens * (self.temperature * self.ops(self._to_tokens(guide))).sigmoid()

    def _to_map(self, tokens: Tensor, spatial_shape: tuple[int, int]) -> Tensor:
        if self.layout == "transposed":
            return to_map(tokens, spatial_shape)
        batch, _, channels = tokens.shape
        # Flat first: an exporter need not find out which of the lengths have common factors.
        return tokens.flatten(1).view(batch, channels, *spatial_shape)

    def _to_tokens(self, feature: Tensor) -> Tensor:
        if self.layout == "transposed":
            return to_tokens(feature)
        batch, channels, height, width = feature.shape
        return feature.flatten(1).view(batch, height * width, channels)
