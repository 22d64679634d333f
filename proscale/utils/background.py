"""Threads that work in the background while the model computes the next results.

Coding PNG files and NumPy's passes over maps release Python's global lock: threads suffice.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class BackgroundWorkers(Generic[T]):
    """Runs tasks on threads and hands their results on, in the order of the tasks.

    At most twice as many tasks as threads are held, done or not; ``submit`` waits for the oldest.

    Args:
        receive: called with every task's result, in the thread that submits.
        num_workers: threads, 1 or more.
    """

    def __init__(self, receive: Callable[[T], None], *, num_workers: int) -> None:
        self._receive = receive
        self._num_workers = num_workers
        self._executor: ThreadPoolExecutor | None = None
        self._pending: deque[Future[T]] = deque()

    def submit(self, task: Callable[[], T]) -> None:
        """Start ``task``; an exception of an earlier task is raised here."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._num_workers)
        # Results that are ready are handed on at once, so that their memory is free early.
        while self._pending and (
            self._pending[0].done() or len(self._pending) >= 2 * self._num_workers
        ):
            self._receive(self._pending.popleft().result())
        self._pending.append(self._executor.submit(task))

    def finish(self) -> None:
        """Wait for all tasks and end the threads; an exception of a task is raised here."""
        try:
            while self._pending:
                self._receive(self._pending.popleft().result())
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Drop all results that are not handed on, and end the threads."""
        self._pending.clear()
        if self._executor is not None:
            # Tasks that have begun are waited for.
            self._executor.shutdown(cancel_futures=True)
            self._executor = None
