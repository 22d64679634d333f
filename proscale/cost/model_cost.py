"""What a model costs for an image of one size, or on average over the images of a data set."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode

from proscale.cost.flops import FlopCount, Size, count_flops, padded_size
from proscale.cost.image_sizes import resize_for_test
from proscale.cost.parts import Part, list_parts
from proscale.cost.shape_tracing import build_without_weights


@dataclass(frozen=True)
class Figure:
    """Mean and (population) standard deviation over images."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class PartCost:
    """A :class:`~proscale.cost.parts.Part` over images, on which parameters do not depend."""

    name: str
    within: str
    multiply_adds: Figure
    activations: Figure
    parameters: int


@dataclass(frozen=True)
class ModelCost:
    """What a model costs.

    Attributes:
        parts: see :func:`~proscale.cost.parts.list_parts`.
        operators: multiply-adds of the network by operator.
        queries: tokens that ask in each attention layer of the encoder, in order.
        uncounted: calls of the operators without a count, by name, in one image.
    """

    parts: list[PartCost]
    operators: dict[str, Figure]
    queries: dict[str, Figure]
    uncounted: dict[str, int]

    def part(self, name: str) -> PartCost | None:
        """The part of the network with this name, None where the model has no such part."""
        found = (part for part in self.parts if part.name == name and not part.within)
        return next(found, None)


def cost_at_size(cfg: CfgNode, size: Size) -> ModelCost:
    """For one image of ``size`` (height, width), which is not resized.

    Raises:
        ValueError: no model can be built from ``cfg``.
    """
    return _average(cfg, [(size, size)])


def cost_over_images(cfg: CfgNode, sizes: Sequence[Size]) -> ModelCost:
    """On average over images of ``sizes``, resized as the configuration says for evaluation;
    results have the sizes of the images."""
    return _average(cfg, [(resize_for_test(size, cfg), size) for size in sizes])


def _average(cfg: CfgNode, sizes: Sequence[tuple[Size, Size]]) -> ModelCost:
    model = build_without_weights(cfg)
    # Nothing but the results depends on more than the padded size.
    groups = Counter((padded_size(model, image), result) for image, result in sizes)
    counts: dict[tuple[Size, Size], FlopCount] = {}
    networks: dict[Size, FlopCount] = {}
    for padded, result in groups:
        networks[padded] = networks.get(padded) or count_flops(model, padded)
        counts[padded, result] = networks[padded].with_result(model, result)
    weights = [groups[key] for key in counts]

    def figure(values: Sequence[int]) -> Figure:
        mean = np.average(values, weights=weights)
        return Figure(float(mean), float(np.average((values - mean) ** 2, weights=weights) ** 0.5))

    parts = zip(*(list_parts(model, count) for count in counts.values()), strict=True)
    first = next(iter(counts.values()))
    return ModelCost(
        parts=[_part(same, figure) for same in parts],
        operators={
            name: figure([count.by_operator[name] for count in counts.values()])
            for name in first.by_operator
        },
        queries={
            name: figure([count.queries[name] for count in counts.values()])
            for name in first.queries
        },
        uncounted=first.uncounted,
    )


def _part(same: Sequence[Part], figure) -> PartCost:
    return PartCost(
        name=same[0].name,
        within=same[0].within,
        multiply_adds=figure([part.multiply_adds for part in same]),
        activations=figure([part.activations for part in same]),
        parameters=same[0].parameters,
    )
