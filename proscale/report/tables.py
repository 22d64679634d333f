"""Sections of tables as HTML: metrics, cost, and keys that differ from the defaults."""

import html
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from proscale.config.schema import add_proscale_config
from proscale.config.setup import read_config_file
from proscale.cost.model_cost import (
    EVERYTHING,
    NETWORK,
    average_cost,
    dataset_sizes,
    resize_for_test,
)
from proscale.cost.tables import CONVENTION, parts_rows
from proscale.errors import ConfigError
from proscale.report.evaluations import Evaluation

# A text, a percentage, or a count as an int.
Cell = str | float


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    is_sortable: bool = False,
    bars: Collection[str] = (),
) -> str:
    """A table; all texts are plain.

    Args:
        is_sortable: a click on a header sorts by its column.
        bars: headers of the columns of percentages that are drawn, too.
    """
    head = "".join(
        f'<th scope="col"><button type="button">{html.escape(header)}</button></th>'
        if is_sortable
        else f'<th scope="col">{html.escape(header)}</th>'
        for header in headers
    )
    with_bar = [header in bars for header in headers]
    body = "".join("<tr>" + "".join(map(_cell, row, with_bar)) + "</tr>" for row in rows)
    content = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table>{content}</table></div>'


def _cell(value: Cell, with_bar: bool) -> str:
    if isinstance(value, str):
        return f"<td>{html.escape(value)}</td>"
    # The page sorts by data-value; classes without a metric come last.
    if math.isnan(value):
        return '<td class="number" data-value="-1">–</td>'
    # Counts, such as true positives, have no decimals.
    shown = str(value) if isinstance(value, int) else f"{value:.1f}"
    if not with_bar:
        return f'<td class="number" data-value="{value!r}">{shown}</td>'
    return (
        f'<td class="number drawn" data-value="{value!r}"><span class="track">'
        f'<i style="width:{min(max(value, 0), 100):.1f}%"></i></span>{shown}</td>'
    )


def heading(evaluation: Evaluation) -> str:
    """Task and data set."""
    dataset = f" <small>{html.escape(evaluation.dataset)}</small>" if evaluation.dataset else ""
    return f"<h3>{html.escape(evaluation.title)}{dataset}</h3>"


def evaluation_html(evaluation: Evaluation) -> str:
    """The metrics of a data set, and those of its classes."""
    metrics = evaluation.metrics
    # A row of all classes and, of panoptic metrics, of things and of stuff.
    names = [name for name in metrics if not name.endswith(("_th", "_st"))]
    summary: list[list[Cell]] = [
        [kind, *(metrics[name + suffix] for name in names)]
        for suffix, kind in (("", "all"), ("_th", "things"), ("_st", "stuff"))
        if all(name + suffix in metrics for name in names)
    ]
    noun = evaluation.noun
    parts = [heading(evaluation), table([noun, *names], summary)]
    # A class that does not occur has no first metric, the one that its row is about.
    occurring = [
        c for c in evaluation.classes if not math.isnan(next(iter(c.metrics.values()), math.nan))
    ]
    if occurring:
        columns = list(occurring[0].metrics)
        with_kind = any(c.kind for c in occurring)
        rows: list[list[Cell]] = [
            [c.name, *[c.kind] * with_kind, *(c.metrics.get(k, math.nan) for k in columns)]
            for c in occurring
        ]
        absent = len(evaluation.classes) - len(occurring)
        note = f" <small>{absent} did not occur</small>" if absent else ""
        parts.append(f"<h4>{len(occurring)} {noun}{note}</h4>")
        singular = "keypoint" if noun == "keypoints" else "class"
        headers = [singular, *["kind"] * with_kind, *columns]
        parts.append(table(headers, rows, is_sortable=True, bars=columns[:1]))
    return f'<div class="panel">{"".join(parts)}</div>'


def cost_html(cfg: CfgNode) -> str:
    """The cost of a model for an image of its test set: a bar of its parts, and a table.

    Raises:
        ValueError, KeyError, AttributeError: the model cannot be built, or its cost not be counted.
    """
    size, origin = (800, 1280), "as the images of the test set are not there"
    for name in cfg.DATASETS.TEST[:1]:
        # From the headers of 100 images: their pixels do not matter.
        with suppress(ValueError):
            sizes = [resize_for_test(size, cfg) for size in dataset_sizes(name, 100)]
            if sizes:
                size = sorted(sizes, key=lambda size: size[0] * size[1])[len(sizes) // 2]
                origin = f"the median of {name}, resized as for evaluation"
    cost = average_cost(cfg, [(size, size)])
    costs = {part.name: part.multiply_adds.mean for part in cost.parts if not part.within}
    whole = costs[EVERYTHING]
    # The bar's pieces are as long as the parts' fractions of all multiply-adds.
    bar, key = [], []
    for number, name in enumerate(name for name in costs if name not in (NETWORK, EVERYTHING)):
        bar.append(f'<span class="c{number}" style="flex-grow:{costs[name] / whole:.4f}"></span>')
        label = f"{html.escape(name)} <b>{costs[name] / 1e9:.2f}</b>"
        key.append(f'<li class="c{number}"><i></i>{label}</li>')
    return (
        f'<div class="panel"><p>For an image of {size[0]}×{size[1]} pixels (height×width), '
        f"{html.escape(origin)}: "
        f"<b>{whole / 1e9:.2f} GFLOPs</b>.</p>"
        f'<div class="shares" aria-hidden="true">{"".join(bar)}</div>'
        f'<ul class="key">{"".join(key)}</ul>'
        f"{table(*parts_rows(cost))}<p><small>{html.escape(CONVENTION)}</small></p></div>"
    )


def configuration_html(config_file: Path) -> str:
    """All keys whose value is not the default, in the file's order, and the text of the file."""
    cfg = get_cfg()
    add_proscale_config(cfg)
    # Both are flattened to names such as MODEL.SWIN.EMBED_DIM.
    defaults = dict(_leaves(cfg))
    content: dict[str, Any] = {}
    # A file that cannot be read has its text only.
    with suppress(ConfigError):
        content, _ = read_config_file(str(config_file))
    # Keys that this version does not have come with a dash.
    changed = [
        (key, _shown(value), _shown(defaults[key]) if key in defaults else "–")
        for key, value in _leaves(content)
        if key not in defaults or _listed(value) != _listed(defaults[key])
    ]
    keys = table(["key", "value", "default"], changed) if changed else ""
    text = html.escape(config_file.read_text("utf-8", "replace"))
    return (
        f'<div class="panel"><h3>{len(changed)} keys that differ from the defaults</h3>'
        f'<div class="settings">{keys}</div>'
        f"<details><summary>All of {config_file.name}</summary><pre>{text}</pre></details></div>"
    )


def _leaves(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in block.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _listed(value: Any) -> Any:
    # YAML makes lists of tuples.
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(_listed(value))
