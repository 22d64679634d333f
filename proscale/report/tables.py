"""Tables as HTML that can be sorted, with bars behind percentages."""

import html
import math
from collections.abc import Collection, Mapping, Sequence

from proscale.report.evaluations import Evaluation

Cell = str | float
"""A text, a percentage, or a count as ``int``."""


def sortable(
    headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, bars: Collection[str] = ()
) -> str:
    """A table whose headers sort it.

    Args:
        headers: plain text.
        rows: cells; texts are plain.
        bars: headers of the columns of percentages that are drawn, too.
    """
    head = "".join(
        f'<th scope="col"><button type="button">{_text(h)}</button></th>' for h in headers
    )
    return _table(head, rows, [header in bars for header in headers])


def plain(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table as it is."""
    head = "".join(f'<th scope="col">{_text(header)}</th>' for header in headers)
    return _table(head, rows, [False] * len(headers))


def evaluation_html(evaluation: Evaluation) -> str:
    """The figures of a data set, and those of its classes."""
    parts = [plain(*_summary(evaluation.figures))]
    occurring = [
        c for c in evaluation.classes if not math.isnan(next(iter(c.figures.values()), math.nan))
    ]
    if occurring:
        columns = list(occurring[0].figures)
        with_kind = any(c.kind for c in occurring)
        headers = ["class", *["kind"] * with_kind, *columns]
        rows = [
            [c.name, *[c.kind] * with_kind, *(c.figures.get(k, math.nan) for k in columns)]
            for c in occurring
        ]
        absent = len(evaluation.classes) - len(occurring)
        note = f" <small>{absent} did not occur</small>" if absent else ""
        parts.append(f"<h4>{len(occurring)} classes{note}</h4>")
        parts.append(sortable(headers, rows, bars=columns[:1]))
    return "".join(parts)


def _summary(figures: Mapping[str, float]) -> tuple[list[str], list[list[Cell]]]:
    """Headers and rows: one, or those of all classes, of things and of stuff."""
    names = [name for name in figures if not name.endswith(tuple(_KINDS))]
    rows = [
        [kind, *(figures[name + suffix] for name in names)]
        for suffix, kind in {"": "all", **_KINDS}.items()
        if all(name + suffix in figures for name in names)
    ]
    return ["classes", *names], rows


_KINDS = {"_th": "things", "_st": "stuff"}


def _table(head: str, rows: Sequence[Sequence[Cell]], with_bar: Sequence[bool]) -> str:
    body = "".join("<tr>" + "".join(map(_cell, row, with_bar)) + "</tr>" for row in rows)
    content = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table>{content}</table></div>'


def _cell(value: Cell, with_bar: bool) -> str:
    if isinstance(value, str):
        return f"<td>{_text(value)}</td>"
    if math.isnan(value):
        return '<td class="number" data-value="-1">–</td>'
    shown = str(value) if isinstance(value, int) else f"{value:.1f}"
    if not with_bar:
        return f'<td class="number" data-value="{value!r}">{shown}</td>'
    return (
        f'<td class="number drawn" data-value="{value!r}"><span class="track">'
        f'<i style="width:{min(max(value, 0), 100):.1f}%"></i></span>{shown}</td>'
    )


def _text(text: str) -> str:
    return html.escape(text)
