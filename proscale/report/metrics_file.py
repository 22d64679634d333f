"""Reads the curves that training logs: ``metrics.json``, a JSON object a line.

A run that was interrupted and resumed from a checkpoint logs the iterations between the two once
more; what counts is what the later process logged.
"""

import json
from pathlib import Path

Points = list[tuple[int, float]]
"""(iteration, value), iterations rising; values may be nan or infinite."""


_MOST = 2**53  # iterations are drawn as floats


def read_metrics(path: Path) -> tuple[dict[str, Points], list[int]]:
    """The curves by metric, and the numbers of the lines that hold none.

    Raises:
        OSError: the file cannot be read.
    """
    curves: dict[str, Points] = {}
    damaged = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                iteration, values = _parse(line)
            except (ValueError, OverflowError, RecursionError):
                damaged.append(number)
                continue
            for name, value in values.items():
                points = curves.setdefault(name, [])
                while points and points[-1][0] >= iteration:
                    points.pop()
                points.append((iteration, value))
    return curves, damaged


def _parse(line: str) -> tuple[int, dict[str, float]]:
    record = json.loads(line)
    iteration = record.pop("iteration", None) if isinstance(record, dict) else None
    if type(iteration) is not int or not 0 <= iteration < _MOST:
        raise ValueError("no iteration")
    return iteration, {k: float(v) for k, v in record.items() if type(v) in (int, float)}
