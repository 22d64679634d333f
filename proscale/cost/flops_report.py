"""What models cost, as Markdown tables and for JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from proscale.cost.budget import Candidate
from proscale.cost.model_cost import Figure, ModelCost, PartCost
from proscale.cost.parts import (
    BACKBONE,
    ENCODER_PART,
    EVERYTHING,
    HEAD,
    NETWORK,
    RESULTS,
    TRANSFORMER_DECODER,
)
from proscale.cost.tables import markdown_table

CONVENTION = (
    "GFLOPs are 1e9 multiply-adds of one image, as in the papers. The network ends in classes and "
    "masks; results (masks resized to the image, semantic scores) are counted apart. Counted are "
    "products, norms, resizing and sampling; element-wise arithmetic, comparisons and copies are "
    "free. Activations are the numbers that products put out."
)
_COLUMNS = (BACKBONE, ENCODER_PART, TRANSFORMER_DECODER, HEAD, NETWORK, RESULTS, EVERYTHING)


def summary_table(costs: Mapping[str, ModelCost]) -> str:
    """A row for every model; changes are relative to the first one with the same backbone."""
    columns = [name for name in _COLUMNS if any(cost.part(name) for cost in costs.values())]
    compared = [name for name in (ENCODER_PART, EVERYTHING) if name in columns]
    headers = ["model", *(f"{name}" for name in columns)]
    headers += ["encoder's share"] if ENCODER_PART in columns else []
    if len(costs) > 1:
        headers += [f"{name} vs first*" for name in compared]
    headers += ["parameters, M", "activations, M"]
    rows = []
    for model, cost in costs.items():
        parts = {name: cost.part(name) for name in columns}
        row = [model, *(_giga(part.multiply_adds) if part else "" for part in parts.values())]
        if ENCODER_PART in columns:
            row.append(_share(parts[ENCODER_PART], parts[EVERYTHING]))
        if len(costs) > 1:
            # Told by its parameters: merging tokens changes its cost.
            size = parts[BACKBONE].parameters
            first = next(one for one in costs.values() if one.part(BACKBONE).parameters == size)
            row += [_change(parts[name], first.part(name)) for name in compared]
        whole = parts[NETWORK]
        row += [f"{whole.parameters / 1e6:.2f}", _figure(whole.activations, 1e6, 0)]
        rows.append(row)
    note = "\n\n\\* with the same backbone." if len(costs) > 1 else ""
    return markdown_table(rows, headers, text=["model"]) + note


def parts_rows(cost: ModelCost) -> tuple[list[str], list[list[str]]]:
    """Headers, and a row for every part and, with a dash, its pieces."""
    whole = cost.part(EVERYTHING)
    rows = [
        [
            f"– {part.name}" if part.within else part.name,
            _giga(part.multiply_adds),
            _share(part, whole),
            f"{part.parameters / 1e6:.2f}",
            _figure(part.activations, 1e6, 1),
        ]
        for part in cost.parts
    ]
    return ["part", "GFLOPs", "share", "parameters, M", "activations, M"], rows


def parts_table(cost: ModelCost) -> str:
    """What :func:`parts_rows` returns."""
    headers, rows = parts_rows(cost)
    return markdown_table(rows, headers, text=["part"])


def operators_table(cost: ModelCost) -> str:
    """A row for every operator of the network, the costliest first."""
    whole = cost.part(NETWORK).multiply_adds
    ordered = sorted(cost.operators.items(), key=lambda item: -item[1].mean)
    rows = [
        [name, _giga(figure), f"{100 * figure.mean / whole.mean:.1f} %"] for name, figure in ordered
    ]
    return markdown_table(rows, ["operator", "GFLOPs", "share of the network"], text=["operator"])


def tokens_table(cost: ModelCost) -> str:
    """Tokens seen by each encoder layer; neighbours that see the same share a row."""
    runs: list[tuple[int, int, Figure]] = []
    for number, figure in enumerate(cost.queries.values(), start=1):
        if runs and runs[-1][2] == figure:
            runs[-1] = (runs[-1][0], number, figure)
        else:
            runs.append((number, number, figure))
    rows = [
        [str(first) if first == last else f"{first}–{last}", _figure(figure, 1, 0)]
        for first, last, figure in runs
    ]
    return markdown_table(rows, ["encoder layers", "tokens"], text=["encoder layers"])


def budget_table(candidates: Sequence[Candidate], levels: Sequence[str]) -> str:
    """A row for every candidate."""
    rows = [
        [
            ",".join(map(str, candidate.layers)),
            f"{candidate.multiply_adds / 1e9:.2f}",
            f"{100 * candidate.share:.1f} %",
            *map(str, candidate.depths),
        ]
        for candidate in candidates
    ]
    headers = ["p1,p2,p3", "encoder, GFLOPs", "of Mask2Former's"]
    headers += [f"layers seen by {level}" for level in levels]
    return markdown_table(rows, headers, text=["p1,p2,p3"])


def cost_as_dict(cost: ModelCost) -> dict:
    """For JSON: multiply-adds, activations and tokens as mean and standard deviation."""
    return asdict(cost)


def _giga(figure: Figure) -> str:
    return _figure(figure, 1e9, 2)


def _figure(figure: Figure, unit: float, digits: int) -> str:
    text = f"{figure.mean / unit:.{digits}f}"
    return f"{text} ± {figure.deviation / unit:.{digits}f}" if figure.deviation else text


def _share(part: PartCost | None, whole: PartCost) -> str:
    return f"{100 * part.multiply_adds.mean / whole.multiply_adds.mean:.1f} %" if part else ""


def _change(part: PartCost | None, first: PartCost | None) -> str:
    if part is None or first is None:
        return ""
    return f"{100 * (part.multiply_adds.mean / first.multiply_adds.mean - 1):+.1f} %"
