"""PRO-SCALE encoders that fit a budget, by the closed form of their cost.

Layers buy depth at each scale: the tokens of the coarsest level pass p1 + p2 + p3 layers, those of
the next p2 + p3, the finest p3. Every layer costs something, so that all configurations together
are one Pareto front; within a budget those count that no other affordable one matches at every
scale.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path

import yaml

from proscale.cost.encoder_cost import EncoderDesign, mask2former_cost, proscale_cost


@dataclass(frozen=True)
class AffordableEncoder:
    """An encoder within the budget.

    Attributes:
        layers: (p1, p2, p3).
        multiply_adds: of its pixel decoder, one image.
        share: them as a fraction of those of Mask2Former's pixel decoder.
    """

    layers: tuple[int, ...]
    multiply_adds: int
    share: float

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers that the tokens of each level pass, coarse to fine."""
        # Level l takes part from stage l on: sums from the last stage back.
        return tuple(reversed(list(accumulate(reversed(self.layers)))))


def affordable(design: EncoderDesign, budget: float, *, max_layers: int) -> list[AffordableEncoder]:
    """All encoders with at least one layer that cost at most the budget, the cheapest first.

    Args:
        design: everything but the layers.
        budget: fraction of the cost of Mask2Former's pixel decoder, e.g. 0.55.
        max_layers: of a stage.
    """
    whole = mask2former_cost(design)
    found = []
    for layers in product(range(max_layers + 1), repeat=len(design.levels)):
        cost = proscale_cost(design, layers)
        # Without any layer there is no encoder.
        if any(layers) and cost <= budget * whole:
            found.append(AffordableEncoder(layers, cost, cost / whole))
    return sorted(found, key=lambda candidate: (candidate.multiply_adds, candidate.layers))


def pareto_front(candidates: Sequence[AffordableEncoder]) -> list[AffordableEncoder]:
    """Those whose depths no other candidate matches or exceeds at every scale."""
    return [
        candidate
        for candidate in candidates
        if not any(
            other.depths != candidate.depths
            and all(more >= mine for more, mine in zip(other.depths, candidate.depths, strict=True))
            for other in candidates
        )
    ]


def write_config(file: Path, base: Path, layers: Sequence[int]) -> None:
    """Write the YAML file of a PRO-SCALE model with these layers, all else as in ``base``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {
        # Relative, so that both files can move together.
        "_BASE_": os.path.relpath(base.resolve(), file.parent.resolve()),
        "MODEL": {
            "SEM_SEG_HEAD": {"PIXEL_DECODER_NAME": "PROSCALE"},
            "PROSCALE": {"PROSCALE_NUM_LAYERS": list(layers)},
        },
    }
    file.write_text(yaml.safe_dump(document, sort_keys=False, default_flow_style=None))
