"""PRO-SCALE's pixel decoder: an encoder whose token length grows with depth (PRO-SCALE, §3).

The first layers see the coarsest level alone, each further stage adds the next finer level, and
only the last stage pays for the finest one.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from proscale.modeling.pixel_decoders.base import PixelDecoder, PyramidArguments
from proscale.modeling.pixel_decoders.budget_gate import BudgetGate
from proscale.modeling.pixel_decoders.deformable_encoder import (
    DeformableEncoderLayer,
    EncoderLayerArguments,
    TokenPlan,
)
from proscale.ops.fused import reduce_bilinear, to_map, to_tokens

LAYOUTS = ("released", "transposed")


class TokenRecalibration(nn.Module):
    """Token Re-Calibration (§3): gates for coarse tokens, read from the finest level.

    ``tokens · sigmoid(temperature · f(finest level, resized))``, f linear over the channels.

    Args:
        d_model: width of the tokens.
        convolution: f is a 1x1 convolution of the resized map; otherwise a linear layer on its
            tokens. Under the transposed layout both compute the same function.
        temperature: factor before the sigmoid.
        layout: how tokens are read as maps, ``"released"`` or ``"transposed"``.
    """

    def __init__(self, d_model: int, *, convolution: bool, temperature: float, layout: str):
        super().__init__()
        # f: C channels to one number; named as in the published checkpoints.
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
        # The finest level, resized to the size of the tokens' level: (B, C, h, w).
        guide = reduce_bilinear(self._to_map(finest, finest_shape), spatial_shape)
        # One gate in (0, 1) a token: (B, 1, h, w), or (B, h·w, 1) in the linear form.
        if self.convolution:
            # The gate multiplies the tokens read as a map.
            gate = (self.temperature * self.ops(guide)).sigmoid()
            return self._to_tokens(self._to_map(tokens, spatial_shape) * gate)
        return tokens * (self.temperature * self.ops(self._to_tokens(guide))).sigmoid()

    def _to_map(self, tokens: Tensor, spatial_shape: tuple[int, int]) -> Tensor:
        if self.layout == "transposed":
            return to_map(tokens, spatial_shape)
        # The released weights were trained with a reading of tokens as maps that does not
        # transpose: the memory of a (B, H·W, C) tensor is taken for (B, C, H, W). They only give
        # their published quality with it.
        batch, _, channels = tokens.shape
        # Flat first: an exporter need not find out which of the lengths have common factors.
        return tokens.flatten(1).view(batch, channels, *spatial_shape)

    def _to_tokens(self, feature: Tensor) -> Tensor:
        if self.layout == "transposed":
            return to_tokens(feature)
        # The same in the other direction.
        batch, channels, height, width = feature.shape
        return feature.flatten(1).view(batch, height * width, channels)


class ProgressiveEncoder(nn.Module):
    """Stages of deformable layers; stage s sees the s coarsest levels.

    A stage without layers still hands its level, recalibrated, to the next stage. A budget has the
    first layers of every stage alone compute: one set of weights serves many depths.

    Args:
        stages: the layers of each stage, one stage a level.
        token_excite: recalibrates every level but the finest as it enters; None leaves them.
        residual: add a stage's input, as recalibrated, to each of its layers' output, in every
            stage but the last.
    """

    budget: list[int]
    """Layers of each stage that compute."""

    def __init__(
        self,
        stages: Sequence[Sequence[DeformableEncoderLayer]],
        *,
        token_excite: TokenRecalibration | None,
        residual: bool,
    ):
        super().__init__()
        self.layers = nn.ModuleList(layer for stage in stages for layer in stage)
        self.num_layers = [len(stage) for stage in stages]
        self.token_excite = token_excite
        self.residual = residual
        self.budget = list(self.num_layers)

    @property
    def smallest_budget(self) -> list[int]:
        """One layer of every stage that has layers: no level is left without attention."""
        return [min(1, count) for count in self.num_layers]

    @property
    def budgets(self) -> list[tuple[int, ...]]:
        """All of them: the smallest first and the largest, all layers, last."""
        return list(product(*self.depths))

    @property
    def num_budgets(self) -> int:
        """How many these are, which is not bounded."""
        return prod(map(len, self.depths))

    @property
    def depths(self) -> list[range]:
        """Layers that each stage may have compute."""
        return [
            range(least, most + 1)
            for least, most in zip(self.smallest_budget, self.num_layers, strict=True)
        ]

    def set_budget(self, budget: Sequence[int]) -> None:
        """Compute the first ``budget[s]`` layers of stage s from now on, in training, too.

        Raises:
            ValueError: see :meth:`check_budget`.
        """
        self.check_budget(budget)
        self.budget = list(budget)

    def check_budget(self, budget: Sequence[int]) -> None:
        """Raise ValueError unless it is between :attr:`smallest_budget` and ``num_layers``."""
        fits = len(budget) == len(self.num_layers) and all(
            count in depths for count, depths in zip(budget, self.depths, strict=True)
        )
        if not fits:
            raise ValueError(
                f"budget is {list(budget)}: expected, for each stage, layers from "
                f"{self.smallest_budget} to {self.num_layers}"
            )

    def forward(self, levels: Sequence[Tensor], plan: TokenPlan) -> list[Tensor]:
        """``levels``: ``(B, H·W, C)`` each, coarse to fine; returns the same shapes."""
        last = len(self.num_layers) - 1
        tokens = levels[0][:, :0]
        entered: list[Tensor] = []
        for stage, num_layers in enumerate(self.budget):
            # Token Re-Calibration of the level that enters, (B, H·W, C), by the finest one.
            entering = levels[stage]
            if self.token_excite is not None and stage < last:
                shapes = plan.spatial_shapes
                entering = self.token_excite(entering, shapes[stage], levels[last], shapes[last])
            # The stage's tokens: the stage before's output, then the next finer level.
            tokens = torch.cat((tokens, entering), dim=1)
            entered.append(entering)
            # p_s layers over the s coarsest levels: token length grows with depth.
            seen = plan.first(stage + 1)
            # Layers are numbered through, so that parameter names do not tell stages.
            first = sum(self.num_layers[:stage])
            for layer in self.layers[first : first + num_layers]:
                tokens = layer(tokens, seen)
                # The stage's input, recalibrated, on a residual branch of each layer.
                if self.residual and stage < last:
                    tokens = tokens + torch.cat(entered, dim=1)
        return list(tokens.split(plan.lengths, dim=1))


@SEM_SEG_HEADS_REGISTRY.register()
class PROSCALE(PixelDecoder):
    """PRO-SCALE's pixel decoder, under the name of its configuration files.

    Args:
        input_shape: channels and stride of the backbone's levels.
        num_layers: layers of each stage, one stage for each level the encoder sees.
        mask_output_ops: see :class:`~proscale.modeling.pixel_decoders.base.PixelDecoder`.
        recalibration: layout of :class:`TokenRecalibration`, or ``"none"``.
        excite_conv, excite_temperature: its form, None for none; factor before its sigmoid.
        residual: see :class:`ProgressiveEncoder`.
        budget: see :meth:`ProgressiveEncoder.set_budget`; None has all layers compute.
        gate: budgets of which inference chooses one for each image; none without a gate.
        layer, pyramid: widths of each layer; levels and widths.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_layers: Sequence[int],
        mask_output_ops: str,
        recalibration: str,
        excite_conv: bool | None,
        excite_temperature: float,
        residual: bool,
        budget: Sequence[int] | None = None,
        gate: Sequence[Sequence[int]] = (),
        layer: EncoderLayerArguments,
        pyramid: PyramidArguments,
    ):
        levels = pyramid.transformer_in_features
        if len(num_layers) != len(levels) or min(num_layers) < 0:
            raise ValueError(
                f"num_layers is {list(num_layers)}: expected one number from 0 for each of the "
                f"encoder's {len(levels)} levels {list(levels)}"
            )
        # Stage s sees s levels, from the coarsest.
        stages = [
            [DeformableEncoderLayer(layer, stage) for _ in range(count)]
            for stage, count in enumerate(num_layers, start=1)
        ]
        if recalibration not in (*LAYOUTS, "none"):
            raise ValueError(
                f"recalibration is {recalibration!r}: expected {', '.join(LAYOUTS)} or none"
            )
        token_excite = None
        # A single level has no finer one to be recalibrated by.
        if recalibration != "none" and excite_conv is not None and len(levels) > 1:
            token_excite = TokenRecalibration(
                layer.d_model,
                convolution=excite_conv,
                temperature=excite_temperature,
                layout=recalibration,
            )
        encoder = ProgressiveEncoder(stages, token_excite=token_excite, residual=residual)
        if budget is not None:
            encoder.set_budget(budget)
        for exit_ in gate:
            encoder.check_budget(exit_)
        super().__init__(input_shape, pyramid, encoder=encoder, mask_output_ops=mask_output_ops)
        self.gate = BudgetGate(layer.d_model, gate) if gate else None

    def coarsest(self, features: Mapping[str, Tensor]) -> Tensor:
        """The coarsest level's map ``(B, C, H, W)`` as the encoder gets it."""
        return self.input_proj[0](features[self.transformer_in_features[0]])

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.PROSCALE
        return {
            "input_shape": input_shape,
            "num_layers": node.PROSCALE_NUM_LAYERS,
            "mask_output_ops": node.MASK_OUTPUT_OPS,
            "recalibration": node.RECALIBRATION,
            "excite_conv": node.IS_EXCITE_CONV,
            "excite_temperature": node.EXCITE_TEMP,
            "residual": node.RESIDUAL,
            "budget": node.BUDGET or None,
            "gate": node.GATE,
            "layer": EncoderLayerArguments.from_config(cfg),
            "pyramid": PyramidArguments.from_config(cfg),
        }
