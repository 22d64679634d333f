"""What ``log.txt`` tells of a training that no other file has: versions, machine, memory, times."""

import re
from dataclasses import dataclass, field
from pathlib import Path

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
# Detectron2's format, and logging's own.
_TIME = re.compile(r"\[?(\d\d/\d\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)")
_MEMORY = re.compile(r"\bmax_mem: (\d+)M")
_COLUMNS = re.compile(r"\s{2,}")
_ENVIRONMENT, _COMMAND = "Environment info:", "Command line arguments: "


@dataclass
class LogFacts:
    """What was found; empty or None where the log does not say.

    Attributes:
        environment: versions and devices of the latest start, by name.
        command: arguments of the latest start.
        starts: how many times training or evaluation was started.
        first, last: times of the first and the last line, as logged.
        peak_memory: of the device, MiB.
    """

    environment: dict[str, str] = field(default_factory=dict)
    command: str = ""
    starts: int = 0
    first: str = ""
    last: str = ""
    peak_memory: int | None = None


def read_log(path: Path) -> LogFacts:
    """Read a log line by line, however long it is.

    Raises:
        OSError: the file cannot be read.
    """
    facts = LogFacts()
    rules = 2  # lines of dashes seen around the table of the environment
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            line = _ESCAPE.sub("", line.rstrip("\n"))
            if time := _TIME.match(line):
                facts.first = facts.first or time[1]
                facts.last = time[1]
            if _ENVIRONMENT in line:
                facts.environment, facts.starts, rules = {}, facts.starts + 1, 0
            elif rules < 2:
                if line.startswith("---"):
                    rules += 1
                elif len(columns := _COLUMNS.split(line, maxsplit=1)) == 2:
                    facts.environment[columns[0]] = columns[1]
            if _COMMAND in line:
                facts.command = line.partition(_COMMAND)[2]
            if memory := _MEMORY.search(line):
                facts.peak_memory = max(facts.peak_memory or 0, int(memory[1]))
    return facts
