"""Latency of several callables measured in turns, as medians with quartiles.

Every round calls each of them once, so that other load of the machine touches all alike, and their
ratios hold on a busy machine, too.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

Key = TypeVar("Key", bound=Hashable)
Clock = Callable[[], float]

TOTAL = "total"


@dataclass(frozen=True)
class Timing:
    """Seconds that repeated calls took, in the order in which they were made."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return float(np.median(self.samples))

    @property
    def quartiles(self) -> tuple[float, float]:
        """Seconds: a quarter of the calls is below the first, a quarter above the second."""
        lower, upper = np.quantile(self.samples, (0.25, 0.75))
        return float(lower), float(upper)

    @property
    def milliseconds(self) -> tuple[str, str]:
        """Median and quartiles, for tables."""
        lower, upper = self.quartiles
        return f"{1e3 * self.median:.4g}", f"{1e3 * lower:.4g}–{1e3 * upper:.4g}"

    @property
    def best(self) -> float:
        """Seconds of the fastest call."""
        return min(self.samples)

    def as_dict(self) -> dict:
        """For JSON; everything in seconds."""
        quartiles, samples = list(self.quartiles), list(self.samples)
        return {"median": self.median, "quartiles": quartiles, "samples": samples}


class Stopwatch:
    """Splits the time from its making into consecutive parts, which add up to the whole."""

    def __init__(self, clock: Clock):
        self.parts: dict[str, float] = {}  #: seconds by part
        self._clock = clock
        self._last = clock()

    def lap(self, part: str) -> None:
        """Ascribe the time since the last lap to ``part``."""
        now = self._clock()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    def hook(self, part: str) -> Callable[..., None]:
        """A hook for modules that laps ``part``."""
        return lambda *_: self.lap(part)


def device_clock(device: torch.device) -> Clock:
    """A clock in seconds that first waits until ``device`` has done all it was given."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        # Kernels are queued: without this, a call's time would be that of its launches.
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def measure(
    callables: Mapping[Key, Callable[[], object]],
    *,
    repeats: int,
    warmup: int,
    clock: Clock = time.perf_counter,
) -> dict[Key, Timing]:
    """Time whole calls; arguments as for :func:`measure_parts`."""

    def call(function: Callable[[], object], watch: Stopwatch) -> None:
        function()
        watch.lap("call")

    by_part = {key: partial(call, function) for key, function in callables.items()}
    times = measure_parts(by_part, repeats=repeats, warmup=warmup, clock=clock)
    return {key: parts[TOTAL] for key, parts in times.items()}


def measure_parts(
    callables: Mapping[Key, Callable[[Stopwatch], object]],
    *,
    repeats: int,
    warmup: int,
    clock: Clock = time.perf_counter,
    before: Callable[[Key], object] = lambda _: None,
) -> dict[Key, dict[str, Timing]]:
    """Time calls part by part.

    Args:
        callables: each gets a stopwatch and laps it at the end of every part; the last lap ends the
            call.
        repeats, warmup: rounds that count, and rounds before them that do not.
        clock: seconds; see :func:`device_clock`.
        before: called with the key before its callable is, while no time is taken.

    Returns:
        the times of all parts in their order and, as the last one, :data:`TOTAL`, their sum.
    """
    samples: dict[Key, dict[str, list[float]]] = {key: defaultdict(list) for key in callables}
    # In turns: a round calls every function once.
    for turn in range(-warmup, repeats):
        for key, function in callables.items():
            before(key)
            # The clock starts with the watch.
            watch = Stopwatch(clock)
            function(watch)
            if turn < 0:
                continue
            for part, seconds in watch.parts.items():
                samples[key][part].append(seconds)
            samples[key][TOTAL].append(sum(watch.parts.values()))
    return {
        key: {part: Timing(tuple(seconds)) for part, seconds in parts.items()}
        for key, parts in samples.items()
    }
