"""Curves of a training as line charts: SVG within HTML.

Colours follow the page, and the page's script reads the data. Values that are not finite break the
line and are marked at the top edge.
"""

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from proscale.predict.page import script_data
from proscale.report.evaluations import HEADLINES
from proscale.report.run_folder import Points

MAX_POINTS = 600  # of a line, at most
_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 8, 12, 26  # margins around the plot
_COLORS = 6  # that the page's style has
_TINY = 1e-100
_DOTS = 25  # points up to which each has a dot

# Detectron2 and this project number the losses at intermediate layers.
_LAYER = re.compile(r"_\d+$")
_SINGLE = {"lr": "Learning rate", "grad_norm": "Gradient norm, before clipping"}
_COUNTS = {
    "skipped_steps": "Steps left out, not finite",
    "overflowed_steps": "Steps left out by loss scaling",
}
# With the main metric those that explain it.
_FAMILIES = {
    "PQ": ["PQ", "PQ_th", "PQ_st"],
    "AP": ["AP", "AP50", "AP75"],
    "mIoU": ["mIoU", "pACC"],
    "PCK@0.1": ["PCK@0.1", "PCK@0.05"],
}
_TIMES = {"time": "in all", "data_time": "waiting for data"}


@dataclass(frozen=True)
class Line:
    """A curve, and how it is shown; a faint one is context for the others."""

    name: str
    points: Points
    is_faint: bool = False


def curve_charts(curves: Mapping[str, Points]) -> str:
    """The charts, as HTML; empty if nothing was logged."""
    charts = "".join(chart(title, lines) for title, lines in _grouped(curves))
    return f'<div class="charts">{charts}</div>' if charts else ""


def evaluated(curves: Mapping[str, Points]) -> dict[str, Points]:
    """Those of ``curves`` that are main metrics, such as ``panoptic_seg/PQ``."""
    # The name of a data set may stand before task and metric.
    names = {f"{task}/{name}" for task, (_, metrics) in HEADLINES.items() for name in metrics}
    return {key: points for key, points in curves.items() if "/".join(key.split("/")[-2:]) in names}


def _grouped(curves: Mapping[str, Points]) -> Iterator[tuple[str, list[Line]]]:
    """Titles of charts, and the metrics that are drawn together."""
    for name in evaluated(curves):
        prefix, _, headline = name.rpartition("/")
        *dataset, task = prefix.split("/")
        title = " · ".join([f"{HEADLINES[task][0]}, percent", *dataset])
        family = {metric: f"{prefix}/{metric}" for metric in _FAMILIES[headline]}
        yield title, [Line(metric, curves[k]) for metric, k in family.items() if k in curves]
    # The losses: the total, then each term with its copies at intermediate layers.
    if "total_loss" in curves:
        yield "Total loss", [Line("total loss", curves["total_loss"])]
    groups: dict[str, list[str]] = {}
    for name in curves:
        if name.startswith("loss"):
            groups.setdefault(_LAYER.sub("", name), []).append(name)
    for group, names in groups.items():
        # Only where the group has the last layer's loss are the others intermediate ones.
        yield group, [Line(n, curves[n], group in names and n != group) for n in names]
    for name, title in _SINGLE.items():
        if name in curves:
            yield title, [Line(title.split(",")[0].lower(), curves[name])]
    times = [Line(label, curves[key]) for key, label in _TIMES.items() if key in curves]
    if times:
        yield "Seconds an iteration", times
    # Steps that were left out are shown once there are some.
    for name, title in _COUNTS.items():
        if any(value for _, value in curves.get(name, [])):
            yield title, [Line("steps", curves[name])]


def chart(title: str, lines: Sequence[Line]) -> str:
    """A chart with its legend, as HTML, of one line at least with a point at least each."""
    # Faint lines are drawn first and lie behind the others.
    lines = [Line(line.name, thinned(line.points), line.is_faint) for line in lines]
    plot = _Plot(lines)
    faint = [line for line in lines if line.is_faint]
    drawn = [plot.draw(line, "faint") for line in faint]
    legend, data = [], []
    for number, line in enumerate(line for line in lines if not line.is_faint):
        style, value = f"c{number % _COLORS}", format_number(line.points[-1][1])
        drawn.append(plot.draw(line, style))
        legend.append(f'<li class="{style}"><i></i>{html.escape(line.name)} <b>{value}</b></li>')
        data.append({"name": line.name, "points": [[i, format_number(v)] for i, v in line.points]})
    if faint:
        legend.append('<li class="faint"><i></i>at intermediate layers</li>')
    if skipped := sum(not _is_drawn(v) for line in lines for _, v in line.points):
        legend.append(f'<li class="wrong"><i></i>{skipped} not finite</li>')
    extent = {"left": plot.left, "right": plot.right, "plot": [_LEFT, _WIDTH - _LEFT - _RIGHT]}
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{plot.axes()}{''.join(drawn)}"
        f'<line class="cursor" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" hidden></line></svg>'
        f'<ul class="key">{"".join(legend)}</ul>'
        f'<script type="application/json">{script_data({**extent, "lines": data})}</script>'
        "</figure>"
    )


def thinned(points: Points) -> Points:
    """At most ``MAX_POINTS`` of them: the extremes of equal stretches, and the last one."""
    if len(points) <= MAX_POINTS:
        return points
    stretches = MAX_POINTS // 2 - 1
    # nan compares with nothing; infinity stands for it.
    heights = [value if _is_drawn(value) else math.inf for _, value in points]
    kept = []
    for number in range(stretches):
        start, end = (len(points) * n // stretches for n in (number, number + 1))
        order = sorted(range(start, end), key=heights.__getitem__)
        kept += sorted({order[0], order[-1]})
    return [points[i] for i in kept if i < len(points) - 1] + [points[-1]]


def format_number(value: float) -> str:
    """A number for people, of some four digits."""
    return f"{value:.4g}"


class _Plot:
    """The coordinates of a chart, and the drawing in them."""

    def __init__(self, lines: Sequence[Line]) -> None:
        iterations = [i for line in lines for i, _ in line.points]
        values = [v for line in lines for _, v in line.points if _is_drawn(v)] or [0.0]
        self.left, self.right = min(iterations), max(iterations)
        # Smaller values count as 0, so that quotients are finite.
        low, high = (0.0 if abs(v) < _TINY else v for v in (min(values), max(values)))
        # An axis begins at 0 unless its curves would be flat then.
        if 0 <= low <= high / 2:
            low = 0.0
        # A constant has room above and below.
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-200):
            low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
        self._low, self._high = low, high + 0.04 * (high - low)

    def draw(self, line: Line, style: str) -> str:
        """The line, dots if there are few, and marks for values that are not finite."""
        parts: list[list[str]] = [[]]
        dots, marks = [], []
        for iteration, value in line.points:
            x = f"{self._x(iteration):.1f}"
            if _is_drawn(value):
                y = f"{self._y(value):.1f}"
                parts[-1].append(f"{x},{y}")
                dots.append(f'<circle cx="{x}" cy="{y}" r="2.5"/>')
            else:
                parts.append([])
                marks.append(f'<path class="wrong" d="M{x} {_TOP}m-3 -3l6 6m0 -6l-6 6"/>')
        lines = "".join(f'<polyline points="{" ".join(p)}"/>' for p in parts if len(p) > 1)
        few = len(dots) <= _DOTS and not line.is_faint
        # A point without neighbours is no line: it is seen as a dot only.
        if not few and all(len(part) != 1 for part in parts):
            dots = []
        return f'<g class="{style}">{lines}{"".join(dots)}</g>{"".join(marks)}'

    def axes(self) -> str:
        """Lines and numbers behind the curves."""
        parts = []
        for value in ticks(self._low, self._high, 4):
            y, label = f"{self._y(value):.1f}", f"{value:g}"
            if 0 < abs(value) < 1e-3:
                power = math.floor(math.log10(abs(value)))
                label = f"{value / 10.0**power:g}e{power}"
            parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
            position = f'x="{_LEFT - 6}" y="{y}" dy=".33em" text-anchor="end"'
            parts.append(f"<text {position}>{label}</text>")
        # Iterations are whole.
        for value in ticks(self.left, self.right, 5):
            if value == round(value):
                x = f"{self._x(value):.1f}"
                label = f"{value / 1000:g}k" if self.right >= 10_000 else f"{value:g}"
                parts.append(f'<text x="{x}" y="{_HEIGHT - 8}" text-anchor="middle">{label}</text>')
        return f'<g class="axes">{"".join(parts)}</g>'

    def _x(self, iteration: float) -> float:
        span = self.right - self.left
        fraction = (iteration - self.left) / span if span else 0.5
        return _LEFT + fraction * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        fraction = (value - self._low) / (self._high - self._low)
        return _HEIGHT - _BOTTOM - fraction * (_HEIGHT - _TOP - _BOTTOM)


def _is_drawn(value: float) -> bool:
    # Larger values count as infinite, so that differences are finite; nan is not drawn.
    return abs(value) < 1e100


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    if low >= high:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    # The step is the round number next to an even division.
    step = min((power * f for f in (1, 2, 2.5, 5, 10)), key=lambda step: abs(step - rough))
    # Multiples of 0.1 are not exact: without rounding a label would be 0.30000000000000004.
    digits = 12 - math.floor(math.log10(step))
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [round(number * step, digits) for number in numbers]
