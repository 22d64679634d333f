"""Pictures of cost for papers: stacked bars by part, and points of one number against another.

A picture is a column of panels; its format goes by the file's suffix.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from proscale.errors import ConfigError
from proscale.utils.whole_files import whole_file

FORMATS = (".svg", ".pdf", ".png")
# Okabe and Ito's colours, which the colour-blind can tell apart, too.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
_MARKERS = "osD^vP*X"
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,
}
_WIDTH, _DPI = 6.5, 200  # inches: a page's text; dots an inch
_BAR = 0.26  # inches a bar
_LABEL_GAP = 11  # points between labels that would touch

Panel = tuple[float, Callable[[Axes], None]]
"""Height (inches), and the function that draws it."""


def check_format(file: Path) -> None:
    """Raise :class:`ConfigError` unless pictures can be written under this name."""
    if file.suffix not in FORMATS:
        raise ConfigError(f"--plot is {file}: expected a name that ends in {', '.join(FORMATS)}")


def read_results(file: Path) -> tuple[str, dict[str, float]]:
    """Name of a metric and its values by model, from JSON such as
    ``{"proscale_r50_333": {"PQ": 51.4}, …}``.

    Raises:
        ConfigError: there is no such file, it holds something else or several metrics.
    """
    try:
        document = json.loads(file.read_text())
        ((metric, *more),) = {tuple(scores) for scores in document.values()}
        values = {model: float(scores[metric]) for model, scores in document.items()}
    except OSError as error:
        raise ConfigError(f"--results is {file}: {error.strerror}") from error
    except (ValueError, AttributeError, TypeError) as error:
        more = [str(error)]
    if more:
        raise ConfigError(
            f"--results is {file}: expected one metric, the same for all models, such as "
            '{"proscale_r50_333": {"PQ": 51.4}}'
        )
    return metric, values


def bars(costs: Mapping[str, Mapping[str, float]], label: str) -> Panel:
    """Stacked bars of ``costs`` by model and part; ``label`` is the axis's, with the unit."""
    parts = list(dict.fromkeys(part for pieces in costs.values() for part in pieces))

    def draw(axes: Axes) -> None:
        models, starts = list(costs), [0.0] * len(costs)
        for part, colour in zip(parts, cycle(_COLOURS), strict=False):
            widths = [costs[model].get(part, 0.0) for model in models]
            pieces = axes.barh(models, widths, left=starts, height=0.72, color=colour, label=part)
            # The next part begins where this one ends.
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        # The last pieces end at the totals.
        totals = [f"{total:.0f}" if total >= 100 else f"{total:.3g}" for total in starts]
        axes.bar_label(pieces, totals, padding=3)
        axes.invert_yaxis()  # the first on top
        axes.margins(x=0.08, y=0.02)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=3,
            frameon=False,
            borderaxespad=0.2,
            handlelength=1,
            columnspacing=1.2,
        )

    return 1.1 + _BAR * len(costs), draw


def points(places: Mapping[str, tuple[float, float]], labels: tuple[str, str]) -> Panel:
    """A labelled point (x, y) for each model; ``labels`` are those of both axes, with units."""

    def draw(axes: Axes) -> None:
        # All colours with one marker, then with the next.
        styles = cycle(product(_MARKERS, _COLOURS))
        for (x, y), (marker, colour) in zip(places.values(), styles, strict=False):
            axes.plot(x, y, marker, color=colour, markersize=6)
        axes.margins(0.1)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        _label_points(axes, places)

    return max(3.2, 1.0 + 0.17 * len(places)), draw


def draw_costs(
    file: Path,
    label: str,
    parts: Mapping[str, Mapping[str, float]],
    totals: Mapping[str, float],
    *,
    panels: Sequence[Panel] = (),
    quality: tuple[str, Mapping[str, float]] | None,
) -> None:
    """Draw bars of cost by model and part, then ``panels``, then the metric of
    :func:`read_results` against the totals of its models, at least one; ``label`` is that of the
    cost, with its unit."""
    column = [bars(parts, label), *panels]
    if quality:
        metric, values = quality
        # Quality is known of some models only.
        places = {name: (totals[name], values[name]) for name in totals if name in values}
        if not places:
            raise ConfigError(f"--results has {', '.join(values)}: expected {', '.join(totals)}")
        column.append(points(places, (label, metric)))
    draw(column, file)


def draw(panels: Sequence[Panel], file: Path) -> None:
    """Draw panels below each other and write the picture."""
    heights = [height for height, _ in panels]
    # matplotlib's stubs name every key.
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure((_WIDTH, sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        rows = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
        for (_, draw_panel), axes in zip(panels, rows[:, 0], strict=True):
            draw_panel(axes)
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as partial:
            figure.savefig(partial, dpi=_DPI)
    print(f"\nPicture: {file}")


def _label_points(axes: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Names in a column on the right, each tied to its point, so that none hides another."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    # Places in pixels depend on the layout, which drawing settles.
    figure.draw_without_rendering()
    to_pixels, points_a_pixel = axes.transData, 72 / figure.dpi
    box = axes.get_window_extent()
    # From the top down: beside its point, or just below the label above.
    order = sorted(places, key=lambda model: places[model][1], reverse=True)
    heights: list[float] = []
    for model in order:
        height = (to_pixels.transform(places[model])[1] - box.y0) * points_a_pixel
        heights.append(min(height, heights[-1] - _LABEL_GAP) if heights else height)
    # From the bottom up: labels that were pushed below the axes are lifted again.
    floor = 0.0
    for index in reversed(range(len(heights))):
        heights[index] = max(heights[index], floor)
        floor = heights[index] + _LABEL_GAP
    for model, height in zip(order, heights, strict=True):
        axes.annotate(
            model,
            places[model],
            (1.03, height / (box.height * points_a_pixel)),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkB": 4},
            annotation_clip=False,
        )
