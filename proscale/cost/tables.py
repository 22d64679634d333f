"""Cost as Markdown tables, and files of the tables and numbers that were printed."""

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from detectron2.config import CfgNode
from tabulate import tabulate

from proscale.cost.encoder_cost import AffordableEncoder, AffordableHybrid, AffordableLite
from proscale.cost.model_cost import (
    BACKBONE,
    ENCODER_PART,
    EVERYTHING,
    HEAD,
    NETWORK,
    RESULTS,
    TRANSFORMER_DECODER,
    MeanStd,
    ModelCost,
)
from proscale.utils.whole_files import write_text

CONVENTION = (
    "GFLOPs are 1e9 multiply-adds of one image, as in the papers. The network ends in classes and "
    "masks; results (masks resized to the image, semantic scores) are counted apart. Counted are "
    "products, norms, resizing and sampling; element-wise arithmetic, comparisons and copies are "
    "free. Activations are the numbers that products put out."
)
_COLUMNS = (BACKBONE, ENCODER_PART, TRANSFORMER_DECODER, HEAD, NETWORK, RESULTS, EVERYTHING)


def model_name(cfg: CfgNode) -> str:
    """The name of a Mask2Former with the pixel decoder of ``cfg``, and its layers."""
    decoder = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
    if decoder == "PROSCALE":
        layers = cfg.MODEL.PROSCALE.BUDGET or cfg.MODEL.PROSCALE.PROSCALE_NUM_LAYERS
        return f"PRO-SCALE ({', '.join(map(str, layers))})"
    # The two others may have its Light-Pixel Embedding.
    light = ", Light-Pixel Embedding" * (cfg.MODEL.PROSCALE.MASK_OUTPUT_OPS == "maxpool")
    if decoder == "LiteDETRPixelDecoder":
        node = cfg.MODEL.LITE_DETR
        return f"Lite-M2F {_spell_order(node.NUM_LAYERS, node.NUM_BLOCKS)}{light}"
    if decoder == "RTDETRPixelDecoder":
        expansion = cfg.MODEL.RT_DETR_ENCODER.EXPANSION
        return f"RT-M2F{f', expansion {expansion:g}' * (expansion != 1)}{light}"
    # A decoder of the user's own has its registered name.
    return "Mask2Former" if decoder == "MSDeformAttnPixelDecoder" else decoder


def _spell_order(num_layers: int, num_blocks: int) -> str:
    # As in the paper of Lite DETR: “(updates of high levels + updates of all) × blocks”.
    return f"({num_layers // num_blocks}+1)x{num_blocks}"


def markdown_table(
    rows: Sequence[Sequence[str]], headers: Sequence[str], text: Collection[str]
) -> str:
    """A table in Markdown's pipe format; ``text`` are the headers of the columns that are aligned
    to the left, others are numbers."""
    alignment = ["left" if header in text else "right" for header in headers]
    return tabulate(rows, headers, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def write_json(file: Path | None, document: Mapping) -> None:
    """Write the document and say so; None writes nothing."""
    _write(file, json.dumps(document, indent=2), "All numbers")


def print_report(
    tables: Sequence[str], document: Mapping, json_file: Path | None, markdown: Path | None
) -> None:
    """Print tables; write them to ``markdown`` and the document to ``json_file``, if named."""
    report = "\n\n".join(tables)
    print(report)
    write_json(json_file, document)
    _write(markdown, report.rstrip(), "Tables")


def _write(file: Path | None, text: str, title: str) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text + "\n")
        print(f"\n{title}: {file}")


def model_tables(costs: Mapping[str, ModelCost]) -> list[str]:
    """Titles and tables: all models side by side; of one alone, all that is known."""
    tables = ["## Models (GFLOPs)", summary_table(costs)]
    if len(costs) == 1:
        (cost,) = costs.values()
        headers, rows = parts_rows(cost)
        tables += ["## Parts", markdown_table(rows, headers, text=["part"])]
        tables += ["## Operators", operators_table(cost), "## Tokens", tokens_table(cost)]
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
    by_part = {model: cost.by_part for model, cost in costs.items()}
    # Models may have different parts: a semantic head has no encoder.
    columns = [name for name in _COLUMNS if any(name in parts for parts in by_part.values())]
    compared = [name for name in (ENCODER_PART, EVERYTHING) if name in columns and len(costs) > 1]
    headers = ["model", *columns]
    headers += ["encoder's share"] if ENCODER_PART in columns else []
    headers += [f"{name} vs first*" for name in compared]
    headers += ["parameters, M", "activations, M"]
    rows = []
    for model, parts in by_part.items():
        mean = {name: part.multiply_adds.mean for name, part in parts.items()}
        row = [model]
        row += [_format(parts[n].multiply_adds, 1e9, 2) if n in parts else "" for n in columns]
        if ENCODER_PART in columns:
            has_encoder = ENCODER_PART in parts
            row.append(_percent(mean[ENCODER_PART] / mean[EVERYTHING]) if has_encoder else "")
        # Backbones are told apart by their parameters: merging tokens changes their cost.
        size = parts[BACKBONE].parameters
        first = next(one for one in by_part.values() if one[BACKBONE].parameters == size)
        for name in compared:
            is_shared = name in parts and name in first
            change = mean[name] / first[name].multiply_adds.mean - 1 if is_shared else None
            row.append("" if change is None else f"{100 * change:+.1f} %")
        whole = parts[NETWORK]
        row += [f"{whole.parameters / 1e6:.2f}", _format(whole.activations, 1e6, 0)]
        rows.append(row)
    note = "\n\n\\* with the same backbone." if len(costs) > 1 else ""
    return markdown_table(rows, headers, text=["model"]) + note


def parts_rows(cost: ModelCost) -> tuple[list[str], list[list[str]]]:
    """Headers, and a row for every part and, with a dash, its pieces."""
    whole = cost.by_part[EVERYTHING].multiply_adds.mean
    # Pieces are marked, because they are part of the row above them.
    rows = [
        [
            f"– {part.name}" if part.within else part.name,
            _format(part.multiply_adds, 1e9, 2),
            _percent(part.multiply_adds.mean / whole),
            f"{part.parameters / 1e6:.2f}",
            _format(part.activations, 1e6, 1),
        ]
        for part in cost.parts
    ]
    return ["part", "GFLOPs", "share", "parameters, M", "activations, M"], rows


def operators_table(cost: ModelCost) -> str:
    """A row for every operator of the network, the costliest first."""
    whole = cost.by_part[NETWORK].multiply_adds.mean
    ordered = sorted(cost.operators.items(), key=lambda item: -item[1].mean)
    rows = [[name, _format(one, 1e9, 2), _percent(one.mean / whole)] for name, one in ordered]
    return markdown_table(rows, ["operator", "GFLOPs", "share of the network"], text=["operator"])


def tokens_table(cost: ModelCost) -> str:
    """Tokens seen by each encoder layer; neighbours that see the same share a row."""
    rows = []
    for tokens, run in groupby(enumerate(cost.queries.values(), start=1), key=itemgetter(1)):
        first, *more = (str(number) for number, _ in run)
        layers = f"{first}–{more[-1]}" if more else first
        rows.append([layers, _format(tokens, 1, 0)])
    return markdown_table(rows, ["encoder layers", "tokens"], text=["encoder layers"])


def budget_table(candidates: Sequence[AffordableEncoder], levels: Sequence[str], whole: str) -> str:
    """A row for every encoder of ``levels``; shares are those of ``whole``."""
    rows = []
    for one in candidates:
        layers, cost = ",".join(map(str, one.layers)), f"{one.multiply_adds / 1e9:.2f}"
        rows.append([layers, cost, _percent(one.share), *map(str, one.depths)])
    layers = ",".join(f"p{number}" for number in range(1, len(levels) + 1))
    headers = [layers, "encoder, GFLOPs", f"of {whole}"]
    headers += [f"layers seen by {level}" for level in levels]
    return markdown_table(rows, headers, text=[layers])


def hybrid_table(candidates: Sequence[AffordableHybrid]) -> str:
    """A row for every variant of RT-M2F."""
    rows = [
        [
            *(f"{one.expansion:g}", one.mask_output_ops),
            *(f"{one.multiply_adds / 1e9:.2f}", _percent(one.share)),
        ]
        for one in candidates
    ]
    text = ["MASK_OUTPUT_OPS"]
    headers = ["EXPANSION", *text, "encoder, GFLOPs", "of Mask2Former's"]
    return markdown_table(rows, headers, text=text)


def merging_table(backbones: Mapping[str, int]) -> str:
    """A row for every way to merge tokens, from the multiply-adds of the backbone by its name, the
    unmerged one first."""
    unmerged = next(iter(backbones.values()))
    rows = [
        [name, f"{cost / 1e9:.2f}", f"{(cost - unmerged) / 1e9:+.2f}", _percent(cost / unmerged)]
        for name, cost in backbones.items()
    ]
    headers = ["TOKEN_MERGING", "backbone, GFLOPs", "network, GFLOPs", "backbone of unmerged"]
    return markdown_table(rows, headers, text=("TOKEN_MERGING",))


def lite_table(candidates: Sequence[AffordableLite]) -> str:
    """A row for every order of Lite-M2F's layers, in the paper's notation."""
    rows = [
        [
            _spell_order(one.num_layers, one.num_blocks),
            *(str(one.num_layers), str(one.num_blocks), one.mask_output_ops),
            *(f"{one.multiply_adds / 1e9:.2f}", _percent(one.share)),
        ]
        for one in candidates
    ]
    text = ["order", "MASK_OUTPUT_OPS"]
    headers = ["order", "NUM_LAYERS", "NUM_BLOCKS", "MASK_OUTPUT_OPS", "encoder, GFLOPs"]
    return markdown_table(rows, [*headers, "of Mask2Former's"], text=text)


def _format(value: MeanStd, unit: float, digits: int) -> str:
    text = f"{value.mean / unit:.{digits}f}"
    return f"{text} ± {value.deviation / unit:.{digits}f}" if value.deviation else text


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
