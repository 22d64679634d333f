"""Line charts as SVG within HTML: colours follow the page, and the page's script reads the data.

Values that are not finite break the line and are marked at the top edge. Long curves are thinned so
that the highest and lowest values of every stretch stay.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from proscale.predict.page import script_data
from proscale.report.metrics_file import Points

MAX_POINTS = 600
"""Of a line, at most."""

_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 8, 12, 26  # margins around the plot
_COLORS = 6  # that the page's style has
_TOO_LARGE = 1e100  # like infinity, so that differences are finite
_DOTS = 25  # points up to which each has a dot


@dataclass(frozen=True)
class Line:
    """A curve, and how it is shown; a faint one is context for the others."""

    name: str
    points: Points
    is_faint: bool = False


def chart(title: str, lines: Sequence[Line]) -> str:
    """A chart with its legend, as HTML.

    Args:
        title: plain text.
        lines: one at least, with a point at least each.
    """
    lines = [Line(line.name, thinned(line.points), line.is_faint) for line in lines]
    plot = _Plot(lines)
    number = 0
    drawn, legend, data = [], [], []
    for line in sorted(lines, key=lambda line: not line.is_faint):
        style = "faint" if line.is_faint else f"c{number % _COLORS}"
        number += not line.is_faint
        drawn.append(plot.draw(line, style))
        if not line.is_faint:
            _, value = line.points[-1]
            legend.append(
                f'<li class="{style}"><i></i>{html.escape(line.name)} <b>{figure(value)}</b></li>'
            )
            data.append({"name": line.name, "points": [[i, figure(v)] for i, v in line.points]})
    if any(line.is_faint for line in lines):
        legend.append('<li class="faint"><i></i>at intermediate layers</li>')
    if skipped := sum(not _is_drawn(v) for line in lines for _, v in line.points):
        legend.append(f'<li class="wrong"><i></i>{skipped} not finite</li>')
    content = {
        "left": plot.left,
        "right": plot.right,
        "plot": [_LEFT, _WIDTH - _LEFT - _RIGHT],
        "lines": data,
    }
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        f"{plot.axes()}{''.join(drawn)}"
        f'<line class="cursor" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" hidden></line></svg>'
        f'<ul class="key">{"".join(legend)}</ul>'
        f'<script type="application/json">{script_data(content)}</script></figure>'
    )


def thinned(points: Points) -> Points:
    """At most ``MAX_POINTS`` of them: the extremes of equal stretches, in their order, and the last
    one."""
    if len(points) <= MAX_POINTS:
        return points
    stretches = MAX_POINTS // 2 - 1
    kept = []
    for number in range(stretches):
        start, end = (len(points) * n // stretches for n in (number, number + 1))
        # nan compares with nothing; infinity stands for it.
        order = sorted(
            range(start, end),
            key=lambda i: points[i][1] if _is_drawn(points[i][1]) else math.inf,
        )
        kept += sorted({order[0], order[-1]})
    return [points[i] for i in kept if i < len(points) - 1] + [points[-1]]


def figure(value: float) -> str:
    """A number for people, of some four digits."""
    return f"{value:.4g}"


class _Plot:
    """The coordinates of a chart and what is drawn in them."""

    def __init__(self, lines: Sequence[Line]) -> None:
        iterations = [i for line in lines for i, _ in line.points]
        values = [v for line in lines for _, v in line.points if _is_drawn(v)] or [0.0]
        self.left, self.right = min(iterations), max(iterations)
        low, high = min(values), max(values)
        if 0 <= low <= high / 2:
            low = 0.0
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-200):
            low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
        self._low, self._high = low, high + 0.04 * (high - low)

    def draw(self, line: Line, style: str) -> str:
        """The line, dots if there are few, and marks for what is not finite."""
        parts, run, dots, marks = [], [], [], []
        for iteration, value in line.points:
            x = f"{self._x(iteration):.1f}"
            if _is_drawn(value):
                run.append(f"{x},{self._y(value):.1f}")
                dots.append(f'<circle cx="{x}" cy="{self._y(value):.1f}" r="2.5"/>')
                continue
            marks.append(f'<path class="wrong" d="M{x} {_TOP}m-3 -3l6 6m0 -6l-6 6"/>')
            parts.append(run)
            run = []
        parts.append(run)
        lines = "".join(f'<polyline points="{" ".join(p)}"/>' for p in parts if len(p) > 1)
        few = len(dots) <= _DOTS and not line.is_faint
        # What stands alone is seen as a dot only.
        alone = any(len(part) == 1 for part in parts)
        return f'<g class="{style}">{lines}{"".join(dots if few or alone else [])}</g>' + "".join(
            marks
        )

    def axes(self) -> str:
        """Lines and numbers behind the curves."""
        parts = []
        for value in ticks(self._low, self._high, 4):
            y = f"{self._y(value):.1f}"
            parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(
                f'<text x="{_LEFT - 6}" y="{y}" dy=".33em" text-anchor="end">{_short(value)}</text>'
            )
        for value in ticks(self.left, self.right, 5):
            if value == round(value):
                x = f"{self._x(value):.1f}"
                label = f"{value / 1000:g}k" if self.right >= 10_000 else f"{value:g}"
                parts.append(f'<text x="{x}" y="{_HEIGHT - 8}" text-anchor="middle">{label}</text>')
        return f'<g class="axes">{"".join(parts)}</g>'

    def _x(self, iteration: float) -> float:
        span = self.right - self.left
        share = (iteration - self.left) / span if span else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _is_drawn(value: float) -> bool:
    return abs(value) < _TOO_LARGE  # nan is not


def _short(value: float) -> str:
    if 0 < abs(value) < 1e-3:
        power = math.floor(math.log10(abs(value)))
        return f"{value / 10.0**power:g}e{power}"
    return f"{value:g}"


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    if low >= high:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * f for f in (1, 2, 2.5, 5, 10)), key=lambda step: abs(step - rough))
    first = math.ceil(low / step)
    return [
        round(number * step, 12 - math.floor(math.log10(step)))
        for number in range(first, math.floor(high / step) + 1)
    ]
