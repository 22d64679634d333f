"""What the model of a run costs for an image of its test set."""

import html

from detectron2.config import CfgNode

from proscale.cost.model_cost import cost_at_size, dataset_sizes, resize_for_test
from proscale.cost.parts import EVERYTHING, NETWORK
from proscale.cost.tables import CONVENTION, parts_rows
from proscale.report.tables import plain
from proscale.utils.types import Size

USUAL_SIZE = (800, 1280)
"""Of an image where the test set is not there."""

_SAMPLED = 100  # images of the test set


def cost_html(cfg: CfgNode) -> str:
    """The shares of the parts as a bar, and a table of all figures.

    Raises:
        ValueError, KeyError, AttributeError: the model cannot be built, or is of another
            architecture than those that are counted.
    """
    size, origin = _typical_size(cfg)
    cost = cost_at_size(cfg, size)
    parts = [p for p in cost.parts if not p.within and p.name not in (NETWORK, EVERYTHING)]
    whole = cost.part(EVERYTHING).multiply_adds.mean
    pieces = [
        f'<span class="c{number}" style="flex-grow:{part.multiply_adds.mean / whole:.4f}"></span>'
        for number, part in enumerate(parts)
    ]
    key = [
        f'<li class="c{number}"><i></i>{html.escape(part.name)} '
        f"<b>{part.multiply_adds.mean / 1e9:.2f}</b></li>"
        for number, part in enumerate(parts)
    ]
    return (
        f"<p>For an image of {size[0]}×{size[1]} pixels (height×width), {html.escape(origin)}: "
        f"<b>{whole / 1e9:.2f} GFLOPs</b>.</p>"
        f'<div class="shares" aria-hidden="true">{"".join(pieces)}</div>'
        f'<ul class="key">{"".join(key)}</ul>'
        f"{plain(*parts_rows(cost))}<p><small>{html.escape(CONVENTION)}</small></p>"
    )


def _typical_size(cfg: CfgNode) -> tuple[Size, str]:
    for name in cfg.DATASETS.TEST[:1]:
        try:
            sizes = [resize_for_test(size, cfg) for size in dataset_sizes(name, _SAMPLED)]
        except ValueError:
            break
        if not sizes:
            break
        middle = sorted(sizes, key=lambda size: size[0] * size[1])[len(sizes) // 2]
        return middle, f"the median of {name}, resized as for evaluation"
    return USUAL_SIZE, "as the images of the test set are not there"
