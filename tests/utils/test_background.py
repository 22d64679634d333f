"""Tasks on threads: order, bound and faults."""

import threading
from functools import partial

import pytest

from proscale.utils.background import BackgroundWorkers


def test_results_come_in_order():
    received = []
    background = BackgroundWorkers(received.append, num_workers=3)
    for number in range(20):
        background.submit(partial(int, number))
    background.finish()
    assert received == list(range(20))


def test_no_more_than_twice_as_many_tasks_as_threads_are_held():
    gate, started = threading.Event(), threading.Semaphore(0)

    def task():
        started.release()
        gate.wait(timeout=60)

    background = BackgroundWorkers(lambda result: None, num_workers=1)
    background.submit(task)
    background.submit(task)
    assert started.acquire(timeout=60)
    third = threading.Thread(target=background.submit, args=(task,))
    third.start()
    third.join(timeout=0.2)
    assert third.is_alive(), "the third task has to wait for the first"
    gate.set()
    third.join(timeout=60)
    assert not third.is_alive()
    background.finish()


def test_a_fault_is_raised_and_what_waits_is_dropped():
    received = []
    background = BackgroundWorkers(received.append, num_workers=1)
    background.submit(partial(int, "1"))
    background.submit(partial(int, "x"))
    with pytest.raises(ValueError, match="x"):
        background.finish()
    background.submit(partial(int, "2"))
    background.finish()
    assert received == [1, 2]
