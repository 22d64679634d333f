"""Cost as Markdown tables, and files of the tables and numbers that were printed."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from proscale.cost.budget import AffordableEncoder
from proscale.cost.model_cost import MeanStd, ModelCost, PartCost
from proscale.cost.parts import (
    BACKBONE,
    ENCODER_PART,
    EVERYTHING,
    HEAD,
    NETWORK,
    RESULTS,
    TRANSFORMER_DECODER,
)

CONVENTION = (
    "GFLOPs are 1e9 multiply-adds of one image, as in the papers. The network ends in classes and "
    "masks; results (masks resized to the image, semantic scores) are counted apart. Counted are "
    "products, norms, resizing and sampling; element-wise arithmetic, comparisons and copies are "
    "free. Activations are the numbers that products put out."
)
_COLUMNS = (BACKBONE, ENCODER_PART, TRANSFORMER_DECODER, HEAD, NETWORK, RESULTS, EVERYTHING)


def markdown_table(
    rows: Sequence[Sequence[str]], headers: Sequence[str], text: Collection[str]
) -> str:
    """A table in Markdown's pipe format.

    Args:
        rows: cells.
        headers: of the columns.
        text: headers of the columns that are aligned to the left; others are numbers.
    """
    alignment = ["left" if header in text else "right" for header in headers]
    return tabulate(rows, headers, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def write_json(file: Path | None, document: Mapping) -> None:
    """Write the document and say so; None writes nothing."""
    _write(file, json.dumps(document, indent=2), "All numbers")


def write_markdown(file: Path | None, text: str) -> None:
    """Write the tables that were printed and say so; None writes nothing."""
    _write(file, text.rstrip(), "Tables")


def _write(file: Path | None, text: str, title: str) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
        print(f"\n{title}: {file}")


def model_tables(costs: Mapping[str, ModelCost]) -> list[str]:
    """Titles and tables: all models side by side; of one alone, all that is known."""
    tables = ["## Models (GFLOPs)", summary_table(costs)]
    if len(costs) == 1:
        (cost,) = costs.values()
        tables += ["## Parts", parts_table(cost), "## Operators", operators_table(cost)]
        tables += ["## Tokens", tokens_table(cost)]
    else:
        tables.append("Parts, operators and tokens of each model: run it alone, or see --json.")
    # An operator that is neither counted nor known to be free.
    tables += [
        f"Warning: {name} has operators without a count: {', '.join(sorted(cost.uncounted))}"
        for name, cost in costs.items()
        if cost.uncounted
    ]
    return tables


def summary_table(costs: Mapping[str, ModelCost]) -> str:
    """A row for every model; changes are relative to the first one with the same backbone."""
    # Models may have different parts: a semantic head has no encoder.
    columns = [name for name in _COLUMNS if any(cost.has(name) for cost in costs.values())]
    compared = [name for name in (ENCODER_PART, EVERYTHING) if name in columns and len(costs) > 1]
    headers = ["model", *columns]
    headers += ["encoder's share"] if ENCODER_PART in columns else []
    headers += [f"{name} vs first*" for name in compared]
    headers += ["parameters, M", "activations, M"]
    rows = []
    for model, cost in costs.items():
        row = [model, *(_giga(cost.part(name)) if cost.has(name) else "" for name in columns)]
        if ENCODER_PART in columns:
            row.append(_share(cost, ENCODER_PART))
        # Backbones are told apart by their parameters: merging tokens changes their cost.
        size = cost.part(BACKBONE).parameters
        first = next(one for one in costs.values() if one.part(BACKBONE).parameters == size)
        row += [_change(cost, first, name) for name in compared]
        whole = cost.part(NETWORK)
        row += [f"{whole.parameters / 1e6:.2f}", _format(whole.activations, 1e6, 0)]
        rows.append(row)
    note = "\n\n\\* with the same backbone." if len(costs) > 1 else ""
    return markdown_table(rows, headers, text=["model"]) + note


def parts_rows(cost: ModelCost) -> tuple[list[str], list[list[str]]]:
    """Headers, and a row for every part and, with a dash, its pieces."""
    whole = cost.part(EVERYTHING).multiply_adds.mean
    # Pieces are marked, because they are part of the row above them.
    rows = [
        [
            f"– {part.name}" if part.within else part.name,
            _giga(part),
            _percent(part.multiply_adds.mean / whole),
            f"{part.parameters / 1e6:.2f}",
            _format(part.activations, 1e6, 1),
        ]
        for part in cost.parts
    ]
    return ["part", "GFLOPs", "share", "parameters, M", "activations, M"], rows


def parts_table(cost: ModelCost) -> str:
    """:func:`parts_rows` as a table."""
    headers, rows = parts_rows(cost)
    return markdown_table(rows, headers, text=["part"])


def operators_table(cost: ModelCost) -> str:
    """A row for every operator of the network, the costliest first."""
    whole = cost.part(NETWORK).multiply_adds.mean
    ordered = sorted(cost.operators.items(), key=lambda item: -item[1].mean)
    rows = [[name, _format(one, 1e9, 2), _percent(one.mean / whole)] for name, one in ordered]
    return markdown_table(rows, ["operator", "GFLOPs", "share of the network"], text=["operator"])


def tokens_table(cost: ModelCost) -> str:
    """Tokens seen by each encoder layer; neighbours that see the same share a row."""
    runs: list[tuple[int, int, MeanStd]] = []
    # Runs of layers: the first, the last, and their tokens.
    for number, tokens in enumerate(cost.queries.values(), start=1):
        if runs and runs[-1][2] == tokens:
            runs[-1] = (runs[-1][0], number, tokens)
        else:
            runs.append((number, number, tokens))
    rows = [
        [str(first) if first == last else f"{first}–{last}", _format(tokens, 1, 0)]
        for first, last, tokens in runs
    ]
    return markdown_table(rows, ["encoder layers", "tokens"], text=["encoder layers"])


def budget_table(candidates: Sequence[AffordableEncoder], levels: Sequence[str]) -> str:
    """A row for every encoder."""
    rows = [
        [
            ",".join(map(str, candidate.layers)),
            f"{candidate.multiply_adds / 1e9:.2f}",
            _percent(candidate.share),
            *map(str, candidate.depths),
        ]
        for candidate in candidates
    ]
    headers = ["p1,p2,p3", "encoder, GFLOPs", "of Mask2Former's"]
    headers += [f"layers seen by {level}" for level in levels]
    return markdown_table(rows, headers, text=["p1,p2,p3"])


def _giga(part: PartCost) -> str:
    return _format(part.multiply_adds, 1e9, 2)


def _format(value: MeanStd, unit: float, digits: int) -> str:
    text = f"{value.mean / unit:.{digits}f}"
    return f"{text} ± {value.deviation / unit:.{digits}f}" if value.deviation else text


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _share(cost: ModelCost, name: str) -> str:
    if not cost.has(name):
        return ""
    return _percent(cost.part(name).multiply_adds.mean / cost.part(EVERYTHING).multiply_adds.mean)


def _change(cost: ModelCost, first: ModelCost, name: str) -> str:
    if not (cost.has(name) and first.has(name)):
        return ""
    ratio = cost.part(name).multiply_adds.mean / first.part(name).multiply_adds.mean
    return f"{100 * (ratio - 1):+.1f} %"
