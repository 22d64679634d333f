"""Draw docs/encoders.svg: which tokens each layer of the encoders updates, and what that costs.

Run it after a change: ``python tools/draw_encoders.py``. Tokens and costs are computed, for the R50
models at 640x960, by the formulas of ``proscale flops --budget``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from proscale.config import setup_cfg
from proscale.cost.encoder_cost import (
    MASK2FORMER_LAYERS,
    EncoderDesign,
    lite_cost,
    mask2former_cost,
    proscale_cost,
    rt_detr_cost,
)
from proscale.modeling.pixel_decoders.lite_detr import InterleavingArguments
from proscale.modeling.pixel_decoders.rt_detr import HybridEncoderArguments

ROOT = Path(__file__).resolve().parents[1]
FIGURE = ROOT / "docs" / "encoders.svg"
CONFIGS = ROOT / "configs" / "coco" / "panoptic"
SIZE = (640, 960)
LEVELS = ("res5", "res4", "res3")  # coarse to fine, as the levels below
UPDATED, READ, UNSEEN = "#328cc1", "#d3e6f3", "#ffffff"
CONVOLVED, INK = "#d9822b", "#333333"


@dataclass(frozen=True)
class Step:
    """A column of the figure: what one layer does with the tokens of each level."""

    updated: Sequence[int]  #: levels whose tokens it changes
    read: Sequence[int]  #: levels whose tokens they attend or take in
    is_convolution: bool = False


def attention(updated: int, read: int) -> Step:
    """A deformable layer: the coarsest ``updated`` levels attend the coarsest ``read``."""
    return Step(range(updated), range(read))


def encoders() -> dict[str, tuple[list[Step], float]]:
    """The layers of each encoder and its multiply-adds over Mask2Former's, by title."""
    cfg = setup_cfg(str(CONFIGS / "proscale_r50_333.yaml"))
    design = EncoderDesign.from_config(cfg, SIZE)
    order, hybrid = InterleavingArguments.from_config(cfg), HybridEncoderArguments.from_config(cfg)
    light_hybrid = replace(hybrid, expansion=0.5)
    costs = {
        "Mask2Former": mask2former_cost(design),
        "PRO-SCALE (3,3,3)": proscale_cost(design, (3, 3, 3)),
        "PRO-SCALE (1,1,1)": proscale_cost(design, (1, 1, 1)),
        "Lite-M2F (2+1)×3": lite_cost(design, order, mask_output_ops="maxpool"),
        "RT-M2F, expansion 0.5": rt_detr_cost(design, light_hybrid),
    }
    block = [attention(2, 3), attention(3, 3)]
    steps = {
        "Mask2Former": [attention(3, 3)] * MASK2FORMER_LAYERS,
        "PRO-SCALE (3,3,3)": [attention(seen, seen) for seen in (1, 1, 1, 2, 2, 2, 3, 3, 3)],
        "PRO-SCALE (1,1,1)": [attention(seen, seen) for seen in (1, 2, 3)],
        "Lite-M2F (2+1)×3": block * 3,
        # Attention within res5; down to res4 and res3, and back up.
        "RT-M2F, expansion 0.5": [
            attention(1, 1),
            *(Step([to], [fro], True) for fro, to in ((0, 1), (1, 2), (2, 1), (1, 0))),
        ],
    }
    return {name: (steps[name], costs[name] / costs["Mask2Former"]) for name in costs}


def draw(file: Path) -> None:
    """Write the figure; the suffix of ``file`` is a picture format's."""
    found = encoders()
    # The same file from the same numbers.
    with matplotlib.rc_context({"svg.hashsalt": "proscale", "font.size": 10}):
        figure = Figure(figsize=(11, 3.6), facecolor="white")
        widths = [len(steps) + 1 for steps, _ in found.values()]
        grid = figure.add_gridspec(
            1, len(found), width_ratios=widths,
            left=0.05, right=0.99, top=0.83, bottom=0.24, wspace=0.18,
        )  # fmt: skip
        for place, (name, (steps, share)) in enumerate(found.items()):
            axes = figure.add_subplot(grid[0, place])
            _draw_steps(axes, steps, named=place == 0)
            axes.set_title(f"{name}\n{share:.0%} of the cost", color=INK, fontsize=9.5)
        meanings = {
            "updated by attention": UPDATED,
            "updated by convolutions": CONVOLVED,
            "seen, not updated": READ,
            "not seen": UNSEEN,
        }
        handles = [
            Patch(facecolor=color, edgecolor=INK, linewidth=0.5, label=meaning)
            for meaning, color in meanings.items()
        ]
        figure.legend(handles=handles, ncols=len(handles), frameon=False, loc="lower center")
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _draw_steps(axes: Axes, steps: Sequence[Step], *, named: bool) -> None:
    """A column for each step, a row for each level, as high as it has tokens to the side."""
    # A level has four times the tokens of the coarser one: twice the height keeps all legible.
    heights = [2**level for level in range(len(LEVELS))]
    bottoms = [sum(heights[:level]) for level in range(len(LEVELS))]
    for place, step in enumerate(steps):
        for level, (bottom, height) in enumerate(zip(bottoms, heights, strict=True)):
            if level in step.updated:
                color = CONVOLVED if step.is_convolution else UPDATED
            else:
                color = READ if level in step.read else UNSEEN
            axes.add_patch(
                Rectangle(
                    (place + 0.6, bottom), 0.8, height, facecolor=color, edgecolor=INK,
                    linewidth=0.5,
                )
            )  # fmt: skip
    axes.set_xlim(0.4, len(steps) + 0.6)
    axes.set_ylim(0, sum(heights))
    axes.set_xticks(range(1, len(steps) + 1))
    middles = [bottom + height / 2 for bottom, height in zip(bottoms, heights, strict=True)]
    axes.set_yticks(middles, LEVELS if named else [""] * len(LEVELS))
    axes.tick_params(length=0)
    axes.set_xlabel("layer")
    axes.spines[:].set_visible(False)


if __name__ == "__main__":
    draw(FIGURE)
    print(FIGURE)
