"""Order of the calls, statistics and parts; with a clock that only moves when a call says so."""

import pytest
import torch

from proscale.benchmark.latency import (
    TOTAL,
    Stopwatch,
    Timing,
    device_clock,
    measure,
    measure_parts,
)


class FakeClock:
    """Seconds that pass when something takes them."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def take(self, seconds: float) -> None:
        self.now += seconds


def test_statistics():
    timing = Timing((4.0, 1.0, 3.0, 2.0, 10.0))
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert timing.best == 1.0
    assert timing.as_dict() == {
        "median": 3.0,
        "quartiles": [2.0, 4.0],
        "samples": [4.0, 1.0, 3.0, 2.0, 10.0],
    }


def test_a_single_sample_has_statistics():
    timing = Timing((2.0,))
    assert (timing.median, timing.quartiles) == (2.0, (2.0, 2.0))


def test_calls_are_made_in_turns_and_the_first_rounds_do_not_count():
    clock, calls = FakeClock(), []
    durations = {"a": iter((50.0, 1.0, 2.0, 3.0)), "b": iter((60.0, 10.0, 20.0, 30.0))}

    def call(name):
        calls.append(name)
        clock.take(next(durations[name]))

    times = measure(
        {name: lambda name=name: call(name) for name in durations},
        repeats=3,
        warmup=1,
        clock=clock,
    )
    assert calls == ["a", "b"] * 4
    assert times == {"a": Timing((1.0, 2.0, 3.0)), "b": Timing((10.0, 20.0, 30.0))}


def test_parts_add_up_to_the_total():
    clock = FakeClock()

    def call(watch):
        for part, seconds in (("load", 1.0), ("work", 4.0), ("load", 2.0)):
            clock.take(seconds)
            watch.lap(part)

    times = measure_parts({"only": call}, repeats=2, warmup=0, clock=clock)["only"]
    assert list(times) == ["load", "work", TOTAL]
    assert times["load"].samples == (3.0, 3.0)
    assert times["work"].samples == (4.0, 4.0)
    assert times[TOTAL].samples == (7.0, 7.0)


def test_preparation_takes_none_of_a_calls_time():
    clock, prepared = FakeClock(), []

    def prepare(key):
        prepared.append(key)
        clock.take(100.0)

    def call(watch):
        clock.take(1.0)
        watch.lap("work")

    times = measure_parts({"a": call, "b": call}, repeats=1, warmup=1, clock=clock, before=prepare)
    assert prepared == ["a", "b", "a", "b"]
    assert times["b"][TOTAL].samples == (1.0,)


def test_a_stopwatch_starts_when_it_is_made():
    clock = FakeClock()
    watch = Stopwatch(clock)
    clock.take(5.0)
    watch.lap("first")
    assert watch.parts == {"first": 5.0}


def test_errors_of_the_callables_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        measure({"broken": lambda: 1 / 0}, repeats=1, warmup=0)


def test_the_clock_of_a_device_does_not_run_backwards():
    clock = device_clock(torch.device("cpu"))
    assert clock() <= clock()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_clock_of_cuda_waits_for_the_device():
    device = torch.device("cuda")
    matrix = torch.rand(4096, 4096, device=device)
    done = torch.cuda.Event()
    for _ in range(20):
        matrix = matrix @ matrix
    done.record()
    device_clock(device)()
    assert done.query()
