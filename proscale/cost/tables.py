"""Markdown tables, and JSON files of everything that was printed."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tabulate import tabulate


def markdown_table(
    rows: Sequence[Sequence[str]], headers: Sequence[str], text: Collection[str]
) -> str:
    """A table in Markdown's pipe format.

    Args:
        rows: cells.
        headers: of the columns.
        text: headers of the columns that are aligned to the left; others are figures.
    """
    alignment = ["left" if header in text else "right" for header in headers]
    return tabulate(rows, headers, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def write_json(file: Path | None, document: Mapping) -> None:
    """Write the document and say so; None writes nothing."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nAll figures: {file}")


def write_markdown(file: Path | None, text: str) -> None:
    """Write the tables that were printed and say so; None writes nothing."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.rstrip() + "\n")
    print(f"\nTables: {file}")
