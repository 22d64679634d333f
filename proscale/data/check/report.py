"""The report of a check as tables, and as a JSON document."""

from collections import defaultdict
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from proscale.data.check.run import DatasetReport, Report
from proscale.data.formats.problems import ERRORS, WARNINGS, Problem

_ROWS, _COLUMNS = 20, 3
_ALIGN = ("left", "right", "right", "right")


def histogram(dataset: DatasetReport) -> str:
    """How often each class occurs, and its fraction of all annotated pixels."""
    # Many classes are set in several columns, read downwards.
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


def summary(report: Report) -> str:
    """How often every kind of problem was found, and the first; then the verdict."""
    by_kind: dict[str, list[Problem]] = defaultdict(list)
    for problem in report.problems:
        by_kind[problem.kind].append(problem)
    # Errors before warnings, each in the order of the tables.
    rows = [
        (severity, kind, len(by_kind[kind]), f"{by_kind[kind][0].file}: {by_kind[kind][0].detail}")
        for severity, kinds in (("error", ERRORS), ("warning", WARNINGS))
        for kind in kinds
        if kind in by_kind
    ]
    headers, widths = ["", "check", "found", "the first"], [None, None, None, 96]
    table = tabulate(rows, headers=headers, maxcolwidths=widths)
    # The verdict, which alone is printed if there are no problems.
    errors = sum(problem.is_error for problem in report.problems)
    images = sum(dataset.num_images for dataset in report.datasets)
    verdict = (
        f"{images} images of {', '.join(d.name for d in report.datasets)}: {errors} errors, "
        f"{len(report.problems) - errors} warnings"
    )
    return f"{table}\n\n{verdict}" if rows else verdict


def as_document(report: Report) -> dict[str, Any]:
    """Everything that was found."""
    return {
        "errors": sum(problem.is_error for problem in report.problems),
        "warnings": sum(not problem.is_error for problem in report.problems),
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
                "faults": [_describe(problem) for problem in dataset.problems],
            }
            for dataset in report.datasets
        ],
        "between": [_describe(problem) for problem in report.between],
        "meanings": ERRORS | WARNINGS,
    }


def _describe(problem: Problem) -> dict[str, Any]:
    return {"severity": "error" if problem.is_error else "warning", **asdict(problem)}
