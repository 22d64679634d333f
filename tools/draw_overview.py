"""Draw docs/overview.svg: the parts of a model, and what PRO-SCALE's encoder saves.

Run it after a change: ``python tools/draw_overview.py``. Tokens and costs are computed, for the
R50 models at 800x1280, by the formula of ``proscale flops --budget``.
"""

from itertools import accumulate
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from proscale.config import setup_cfg
from proscale.cost.encoder_cost import (
    MASK2FORMER_LAYERS,
    EncoderDesign,
    mask2former_cost,
    proscale_cost,
)

ROOT = Path(__file__).resolve().parents[1]
FIGURE = ROOT / "docs" / "overview.svg"
CONFIG = ROOT / "configs" / "coco" / "panoptic" / "proscale_r50_333.yaml"
SIZE = (800, 1280)
LEVELS = ("res5", "res4", "res3")
COLORS = ("#0b3c5d", "#328cc1", "#a9d6ee")  # dark is coarse
ACCENT, INK, PAPER = "#d9822b", "#333333", "#f4f1ec"

PARTS = (  # title, purpose, PRO-SCALE's own or not
    ("image", "", False),
    ("backbone", "ResNet, Swin, timm,\ntoken-merged MiT", False),
    ("progressive\nencoder", "deformable layers,\never more tokens", True),
    ("light-pixel\nembedding", "pooling instead\nof convolution", True),
    ("masked-attention\ndecoder", "queries look inside\ntheir own masks", False),
    ("results", "panoptic, instance,\nsemantic", False),
)


def draw(file: Path) -> None:
    """Write the figure; the suffix of ``file`` is a picture format's."""
    design = EncoderDesign.from_config(setup_cfg(str(CONFIG)), SIZE)
    baseline = mask2former_cost(design)
    finest = len(LEVELS)
    encoders = {
        "Mask2Former": ([finest] * MASK2FORMER_LAYERS, baseline),
        "PRO-SCALE (3,3,3)": ([1] * 3 + [2] * 3 + [3] * 3, proscale_cost(design, (3, 3, 3))),
        "PRO-SCALE (1,1,1)": ([1, 2, 3], proscale_cost(design, (1, 1, 1))),
    }
    # The same file from the same numbers.
    with matplotlib.rc_context({"svg.hashsalt": "proscale", "font.size": 10}):
        figure = Figure(figsize=(11, 5.4), facecolor="white")
        grid = figure.add_gridspec(
            2, 3, height_ratios=(1, 1.5), width_ratios=(6, 9, 4),
            left=0.07, right=0.985, top=0.99, bottom=0.1, hspace=0.4, wspace=0.12,
        )  # fmt: skip
        _draw_parts(figure.add_subplot(grid[0, :]))
        panels = [figure.add_subplot(grid[1, column]) for column in range(len(encoders))]
        cells = [level.cells for level in design.levels]
        for axes, (name, (layers, cost)) in zip(panels, encoders.items(), strict=True):
            _draw_layers(axes, layers, cells)
            axes.set_title(f"{name}\n{cost / baseline:.0%} of the cost", color=INK, fontsize=10)
        panels[0].set_ylabel("thousand tokens")
        panels[1].legend(title="tokens of", frameon=False, loc="upper left")
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _draw_parts(axes: Axes) -> None:
    axes.set_axis_off()
    axes.set_xlim(0, len(PARTS))
    axes.set_ylim(0, 1)
    for place, (title, text, is_new) in enumerate(PARTS):
        axes.add_patch(
            FancyBboxPatch(
                (place + 0.06, 0.05), 0.88, 0.9, boxstyle="round,pad=0,rounding_size=0.06",
                facecolor="#fdf0e1" if is_new else PAPER, edgecolor=ACCENT if is_new else INK,
                linewidth=1.6 if is_new else 0.8,
            )
        )  # fmt: skip
        axes.text(
            place + 0.5, 0.68 if text else 0.5, title, ha="center", va="center",
            weight="bold", color=INK, fontsize=9.5,
        )  # fmt: skip
        axes.text(place + 0.5, 0.3, text, ha="center", va="center", color=INK, fontsize=8.5)
        if place:
            axes.add_patch(
                FancyArrowPatch(
                    (place - 0.07, 0.5), (place + 0.07, 0.5), arrowstyle="-|>",
                    mutation_scale=10, color=INK,
                )
            )  # fmt: skip


def _draw_layers(axes: Axes, layers: list[int], cells: list[int]) -> None:
    """A bar for each layer, of the tokens of the levels that it sees."""
    places = range(1, len(layers) + 1)
    bottoms = [0, *accumulate(cells)]
    for level, (name, color) in enumerate(zip(LEVELS, COLORS, strict=True)):
        seen = [cells[level] / 1000 if depth > level else 0 for depth in layers]
        axes.bar(places, seen, bottom=bottoms[level] / 1000, color=color, label=name, width=0.8)
    axes.set_xticks(places)
    axes.set_xlabel("layer of the encoder")
    axes.set_ylim(0, 1.08 * bottoms[-1] / 1000)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    draw(FIGURE)
    print(FIGURE)
