"""Give every command files that were made to break it, and print a table of what happened.

``python benchmarks/hostile_inputs.py [--family NAME …] [--case TEXT] [--json FILE]``: over 1000
inputs, the cases in tests/hostile; ``--fuzz N`` takes N sound ones that are changed at random.
Each runs in a process of its own, forked from this one, which has imported everything, with
limits of time and memory. The table counts by family the inputs that ran code or asked for the
network (executions), that were accepted although they are wrong or gave another result (silent
wrong), that took over two minutes (hangs), that ended with anything but one line (bare
tracebacks), and that took over 2 GiB of memory or 20 seconds of a processor (over budget). Exit
status 1 if one of these is not 0.
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process has none of its parent's threads
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tabulate import tabulate

from tests.hostile import fuzz, images, material
from tests.hostile.cases import (
    HANG,
    HELD,
    OVER_BUDGET,
    TRACEBACK,
    VERDICTS,
    Case,
    Outcome,
    Place,
    all_cases,
    attempt,
)

MEMORY = 2 * 2**30
"""Bytes that a case may take beyond those of the imports."""
SECONDS = 20
"""Of a processor, that a case may take."""
_PATIENCE = 120  # seconds on the clock, of which others may have taken some
_HARD_LIMIT = 3 * MEMORY  # of addresses


@dataclass(frozen=True)
class Result:
    """The outcome of a case and its cost."""

    family: str
    name: str
    outcome: Outcome
    seconds: float
    mebibytes: float


@dataclass
class _Running:
    family: str
    case: Case
    pid: int
    answer: Path
    since: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; ``arguments`` are those of the command line when None."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    families = list(all_cases())
    parser.add_argument("--family", nargs="+", default=families, choices=families)
    parser.add_argument("--case", default="", metavar="TEXT", help="only names with this in them")
    parser.add_argument("--fuzz", type=int, metavar="N", help="N inputs at random instead")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of their first")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every result, too")
    run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    """Run the cases, print the table, and exit."""
    families = all_cases()
    cases = [
        (family, case)
        for family in options.family
        for case in families[family]
        if options.case in case.name
    ]
    if options.fuzz:
        cases = sorted(fuzz.cases(options.fuzz, options.first), key=lambda named: named[0])
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = run_cases(cases, Path(folder), processes=options.processes)
    print(table(results))
    seconds = [result.seconds for result in results]
    print(
        f"\n{len(results)} inputs in {time.monotonic() - started:.0f} s; at most "
        f"{max(seconds, default=0):.1f} s of a processor and "
        f"{max((result.mebibytes for result in results), default=0):.0f} MiB"
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    failed = [result for result in results if result.outcome.verdict != HELD]
    for result in failed:
        print(f"\n{result.family}: {result.name}: {result.outcome.verdict}")
        for line in result.outcome.text.splitlines()[-6:]:
            print(f"    {line[:200]}")
    sys.exit(bool(failed))


def run_cases(cases: Sequence[tuple[str, Case]], folder: Path, *, processes: int) -> list[Result]:
    """Run cases by their family, ``processes`` at a time, in subfolders of ``folder``."""
    # The material is made by a child as well: this process must not start threads.
    maker = os.fork()
    if maker == 0:
        _quiet(folder / "material.log")
        (folder / "material").mkdir()
        material.make(folder / "material")
        images.make_bombs(folder / "material" / "bombs")
        os._exit(0)
    if os.waitpid(maker, 0)[1]:
        sys.exit((folder / "material.log").read_text())
    waiting = list(enumerate(cases))[::-1]
    running: dict[int, _Running] = {}
    results: dict[tuple[str, str], Result] = {}
    baseline = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    while waiting or running:
        while waiting and len(running) < processes:
            number, (family, case) = waiting.pop()
            started = _start(family, case, folder / str(number), folder / "material")
            running[started.pid] = started
        ended = _next_ended(running)
        if ended is None:
            time.sleep(0.005)
            continue
        pid, status, usage = ended
        one = running.pop(pid)
        memory = max(0, usage.ru_maxrss * 1024 - baseline)
        seconds = usage.ru_utime + usage.ru_stime
        outcome = _outcome(one, status, seconds, memory)
        result = Result(one.family, one.case.name, outcome, seconds, memory / 2**20)
        results[one.family, one.case.name] = result
        if outcome.verdict != HELD:
            print(f"{one.family}: {one.case.name}: {outcome.verdict}", file=sys.stderr, flush=True)
    return [results[family, case.name] for family, case in cases]


def table(results: Sequence[Result]) -> str:
    """Cases and verdicts by family, and their sums."""
    counts: dict[str, Counter[str]] = {}
    for result in results:
        counts.setdefault(result.family, Counter())[result.outcome.verdict] += 1
    rows = [
        [family, sum(counter.values()), *(counter[verdict] for verdict in VERDICTS)]
        for family, counter in counts.items()
    ]
    rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    return tabulate(rows, headers=["family", "inputs", *VERDICTS], tablefmt="github")


def _start(family: str, case: Case, root: Path, material_folder: Path) -> _Running:
    answer = root.with_suffix(".json")
    pid = os.fork()
    if pid == 0:
        try:
            _quiet(root.with_suffix(".log"))
            place = Place(root, material_folder)
            _limit_resources()
            if not case.may_connect:
                sys.addaudithook(lambda event, arguments: _watch(event, arguments, place))
            outcome = attempt(case, place)
            answer.write_text(json.dumps(asdict(outcome)))
        finally:
            # Neither the parent's clean-up nor threads of libraries.
            os._exit(0)
    return _Running(family, case, pid, answer, time.monotonic())


def _quiet(log: Path) -> None:
    """Standard output and error of this process, C++ included, into a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _limit_resources() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _HARD_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _watch(event: str, arguments: tuple, place: Place) -> None:
    """Note a connection to the network as an execution."""
    if event == "socket.getaddrinfo":
        place.canary.write_text(f"asks for the address of {arguments[0]}")
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        place.canary.write_text(f"connects to {arguments[1]}")


def _next_ended(running: dict[int, _Running]) -> tuple[int, int, resource.struct_rusage] | None:
    for one in running.values():
        if time.monotonic() - one.since > _PATIENCE:
            os.kill(one.pid, signal.SIGKILL)
    pid, status, usage = os.wait4(-1, os.WNOHANG)
    return (pid, status, usage) if pid in running else None


def _outcome(one: _Running, status: int, seconds: float, memory: int) -> Outcome:
    if one.answer.is_file():
        outcome = Outcome(**json.loads(one.answer.read_text()))
        if outcome.verdict == HELD and seconds > SECONDS:
            return Outcome(OVER_BUDGET, f"{seconds:.0f} s of a processor")
        if outcome.verdict == HELD and memory > MEMORY:
            return Outcome(OVER_BUDGET, f"{memory / 2**20:.0f} MiB")
        return outcome
    ending = signal.strsignal(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else "no result"
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU):
        return Outcome(HANG, f"{ending} after {seconds:.0f} s")
    return Outcome(TRACEBACK, f"the process ended: {ending}")


if __name__ == "__main__":
    main()
