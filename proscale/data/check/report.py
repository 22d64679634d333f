"""The report of a check as tables, and as a JSON document."""

from collections import defaultdict
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from proscale.data.check.faults import ERRORS, WARNINGS, Fault
from proscale.data.check.run import DatasetReport, Report

# A histogram of more classes than this is set in several columns.
_ROWS = 20
_COLUMNS = 3


def histogram(dataset: DatasetReport) -> str:
    """How often each class occurs, and its share of all annotated pixels."""
    total = sum(dataset.pixels.values()) or 1
    cells = [
        (name, dataset.images[i], dataset.segments[i], f"{100 * dataset.pixels[i] / total:.2f}")
        for i, name in enumerate(dataset.class_names)
    ]
    columns = 1 if len(cells) <= _ROWS else _COLUMNS
    rows = -(-len(cells) // columns)
    lines = [[value for cell in cells[row::rows] for value in cell] for row in range(rows)]
    headers = ["class", "images", "segments", "pixels %"] * columns
    return tabulate(lines, headers=headers, disable_numparse=True, colalign=_ALIGN * columns)


_ALIGN = ("left", "right", "right", "right")


def summary(report: Report) -> str:
    """Every kind of fault that was found: how often, and the first; then the verdict."""
    by_kind: dict[str, list[Fault]] = defaultdict(list)
    for fault in report.faults:
        by_kind[fault.kind].append(fault)
    rows = [
        (severity, kind, len(by_kind[kind]), f"{by_kind[kind][0].file}: {by_kind[kind][0].detail}")
        for severity, kinds in (("error", ERRORS), ("warning", WARNINGS))
        for kind in kinds
        if kind in by_kind
    ]
    headers, widths = ["", "check", "found", "the first"], [None, None, None, 96]
    table = tabulate(rows, headers=headers, maxcolwidths=widths)
    errors = sum(fault.is_error for fault in report.faults)
    images = sum(dataset.num_images for dataset in report.datasets)
    verdict = (
        f"{images} images of {', '.join(d.name for d in report.datasets)}: {errors} errors, "
        f"{len(report.faults) - errors} warnings"
    )
    return f"{table}\n\n{verdict}" if rows else verdict


def as_document(report: Report) -> dict[str, Any]:
    """Everything that was found."""
    return {
        "errors": sum(fault.is_error for fault in report.faults),
        "warnings": sum(not fault.is_error for fault in report.faults),
        "datasets": [
            {
                "name": dataset.name,
                "task": dataset.task,
                "images": dataset.num_images,
                "classes": [
                    {
                        "name": name,
                        "images": dataset.images[i],
                        "segments": dataset.segments[i],
                        "pixels": dataset.pixels[i],
                    }
                    for i, name in enumerate(dataset.class_names)
                ],
                "faults": [_describe(fault) for fault in dataset.faults],
            }
            for dataset in report.datasets
        ],
        "between": [_describe(fault) for fault in report.between],
        "meanings": ERRORS | WARNINGS,
    }


def _describe(fault: Fault) -> dict[str, Any]:
    return {"severity": "error" if fault.is_error else "warning", **asdict(fault)}
