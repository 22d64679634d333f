"""Which of the logged metrics are drawn together."""

import re
from collections.abc import Iterator, Mapping

from proscale.report.charts import Line, chart
from proscale.report.evaluations import HEADLINES
from proscale.report.metrics_file import Points

_LAYER = re.compile(r"_\d+$")
_SINGLE = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm, before clipping",
}
_COUNTS = {
    "skipped_steps": "Steps left out, not finite",
    "overflowed_steps": "Steps left out by loss scaling",
}
# With the headline figure those that explain it.
_FAMILIES = {
    "PQ": ("PQ", "PQ_th", "PQ_st"),
    "AP": ("AP", "AP50", "AP75"),
    "mIoU": ("mIoU", "pACC"),
}
_TIMES = {"time": "in all", "data_time": "waiting for data"}


def curve_charts(curves: Mapping[str, Points]) -> str:
    """The charts, as HTML; empty if nothing was logged."""
    charts = "".join(chart(title, lines) for title, lines in _charts(curves))
    return f'<div class="charts">{charts}</div>' if charts else ""


def evaluated(curves: Mapping[str, Points]) -> dict[str, Points]:
    """The headline figures over the iterations at which they were evaluated, by their names in
    ``curves``, such as ``panoptic_seg/PQ``."""
    return {
        name: points
        for name, points in curves.items()
        if (parts := name.split("/"))[-1]
        == HEADLINES.get(parts[-2] if len(parts) > 1 else "", ("", None))[1]
    }


def _charts(curves: Mapping[str, Points]) -> Iterator[tuple[str, list[Line]]]:
    for name in evaluated(curves):
        prefix, _, headline = name.rpartition("/")
        family = [f"{prefix}/{key}" for key in _FAMILIES[headline]]
        *dataset, task = prefix.split("/")
        title = " · ".join([f"{HEADLINES[task][0]}, percent", *dataset])
        lines = [Line(key.rpartition("/")[2], curves[key]) for key in family if key in curves]
        yield title, lines
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
    for name, title in _COUNTS.items():
        if any(value for _, value in curves.get(name, [])):
            yield title, [Line("steps", curves[name])]
