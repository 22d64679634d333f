"""Reads the folder of a training or evaluation: each file as far as it is there and sound."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode

from proscale.checkpoint import LAST_CHECKPOINT
from proscale.config import setup_cfg
from proscale.errors import ConfigError, RunFolderError
from proscale.report.evaluations import Evaluation, read_evaluations

# As Detectron2 names them.
CONFIG_FILE, METRICS_FILE, LOG_FILE = "config.yaml", "metrics.json", "log.txt"

# (iteration, value), iterations rising; values may be nan or infinite.
Points = list[tuple[int, float]]
# Without a file the page has none of these.
_CONTENTS = {
    CONFIG_FILE: "no configuration, no cost and no pictures",
    METRICS_FILE: "no curves",
    LOG_FILE: "no versions",
}
_MAX_ITERATION = 2**53  # iterations are drawn as floats
_MAX_LINE = 2**20  # characters that are read at once
_MAX_NAME = 4096  # bytes of the file that names the latest checkpoint

# Detectron2's format of times, and logging's own.
_TIME = re.compile(r"\[?(\d\d/\d\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)")
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_MEMORY = re.compile(r"\bmax_mem: (\d{1,15})M")
_COLUMNS = re.compile(r"\s{2,}")
_ENVIRONMENT, _COMMAND = "Environment info:", "Command line arguments: "


@dataclass
class LogFacts:
    """Facts that only ``log.txt`` has; empty or None where it does not say."""

    environment: dict[str, str] = field(default_factory=dict)  # versions and devices, by name
    command: str = ""  # arguments of the latest start, as the environment
    starts: int = 0
    first: str = ""  # times of the first and the last line, as logged
    last: str = ""
    peak_memory: int | None = None  # of the device, MiB


@dataclass(frozen=True)
class RunFolder:
    """A folder of a training or evaluation."""

    cfg: CfgNode | None  # on a device that this machine has; None if none can be used
    curves: dict[str, Points]  # logged metrics by name
    evaluations: list[Evaluation]  # latest results
    log: LogFacts
    weights: Path | None  # the latest checkpoint
    missing: list[str]  # a sentence for everything that is not there or damaged

    @property
    def steps(self) -> int:
        """Iterations that are done as far as they are logged; 0 for an evaluation alone."""
        points = self.curves.get("total_loss", [])
        return points[-1][0] + 1 if points else 0


def read_run(path: Path) -> RunFolder:
    """Read a folder.

    Raises:
        RunFolderError: there is no such folder, or nothing of a training or evaluation in it.
    """
    evaluations, missing = read_evaluations(path)
    there = [name for name in _CONTENTS if (path / name).is_file()]
    if not there and not evaluations:
        problem = "has none of them" if path.is_dir() else "is no folder"
        raise RunFolderError(
            f"RUN_DIR is {path}: expected the OUTPUT_DIR of a training or evaluation, with "
            f"{', '.join(_CONTENTS)} or results.json; it {problem}"
        )
    absent = [name for name in _CONTENTS if name not in there]
    missing += [f"There is no {name}: {_CONTENTS[name]}." for name in absent]
    # Each file is read by itself: the page names damage in one and shows the others.
    cfg: CfgNode | None = None
    curves: dict[str, Points] = {}
    log = LogFacts()
    try:
        if CONFIG_FILE in there:
            # The run may come from a machine with another device.
            device = "cuda" if torch.cuda.is_available() else "cpu"
            cfg = setup_cfg(str(path / CONFIG_FILE), ["MODEL.DEVICE", device], saved=True)
    except ConfigError as error:
        missing.append(f"The configuration cannot be used: {error}.")
    try:
        if METRICS_FILE in there:
            curves, damaged = read_metrics(path / METRICS_FILE)
            if damaged:
                lines = f"{len(damaged)} damaged lines of {METRICS_FILE}"
                numbers = [*map(str, damaged[:5]), *["…"] * (len(damaged) > 5)]
                missing.append(f"{lines} are left out: {', '.join(numbers)}.")
            if not curves:
                missing.append(f"{METRICS_FILE} has no curves yet.")
    except OSError as error:
        missing.append(f"{METRICS_FILE} cannot be read: {error.strerror}.")
    if not evaluations:
        missing.append("There are no results of an evaluation yet.")
    try:
        if LOG_FILE in there:
            log = read_log(path / LOG_FILE)
    except OSError as error:
        missing.append(f"{LOG_FILE} cannot be read: {error.strerror}.")
    # The latest checkpoint in the folder; for an evaluation alone the evaluated one.
    weights = None
    pointer = path / LAST_CHECKPOINT
    name = ""
    if pointer.is_file():
        with pointer.open("rb") as file:
            name = file.read(_MAX_NAME).decode("utf-8", "replace").strip()
    if name:
        # The folder may have been moved or copied: only the file's name counts.
        weights = path / Path(name).name
    elif cfg is not None and not curves.get("total_loss") and cfg.MODEL.WEIGHTS:
        weights = Path(cfg.MODEL.WEIGHTS)
    # Not is_file(), which raises for a name that is too long.
    if weights is not None and not os.path.isfile(weights):
        weights = None
    return RunFolder(cfg, curves, evaluations, log, weights, missing)


def read_metrics(path: Path) -> tuple[dict[str, Points], list[int]]:
    """The curves by metric, a JSON object per line, and the numbers of the lines that hold none."""
    curves: dict[str, Points] = {}
    damaged = []
    for number, line in enumerate(_lines(path), 1):
        try:
            iteration, values = _parse(line)
        except (ValueError, OverflowError, RecursionError):
            damaged.append(number)
            continue
        for name, value in values.items():
            points = curves.setdefault(name, [])
            # A run that resumes from a checkpoint logs the iterations after it once more.
            while points and points[-1][0] >= iteration:
                points.pop()
            points.append((iteration, value))
    return curves, damaged


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text, long ones in pieces: a file without any would fill the memory."""
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from iter(partial(file.readline, _MAX_LINE), "")


def _parse(line: str) -> tuple[int, dict[str, float]]:
    # Python's JSON reads nan and infinity, which training logs when it diverges.
    record = json.loads(line)
    iteration = record.pop("iteration", None) if isinstance(record, dict) else None
    if type(iteration) is not int or not 0 <= iteration < _MAX_ITERATION:
        raise ValueError("no iteration")
    # By exact type: true is no number, though Python's bool is an int.
    return iteration, {k: float(v) for k, v in record.items() if type(v) in (int, float)}


def read_log(path: Path) -> LogFacts:
    """Read a log line by line, however long it is; an OSError if it cannot be read."""
    facts = LogFacts()
    rules = 2  # lines of dashes seen around the table of the environment
    for line in _lines(path):
        line = _COLOR.sub("", line.rstrip("\n"))
        if time := _TIME.match(line):
            facts.first = facts.first or time[1]
            facts.last = time[1]
        # Every start logs the environment, as a table between two rules, and its command.
        if _ENVIRONMENT in line:
            facts.environment, facts.starts, rules = {}, facts.starts + 1, 0
        elif rules < 2:
            if line.startswith("---"):
                rules += 1
            elif len(columns := _COLUMNS.split(line, maxsplit=1)) == 2:
                facts.environment[columns[0]] = columns[1]
        if _COMMAND in line:
            facts.command = line.partition(_COMMAND)[2]
        # The peak restarts with every process; the largest one counts.
        if memory := _MEMORY.search(line):
            facts.peak_memory = max(facts.peak_memory or 0, int(memory[1]))
    return facts
