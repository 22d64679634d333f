from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from proscale.engine.distributed import join_attempt


def join_all(store: dist.Store, order: list[int]) -> list[dist.Store]:
    """All ranks join, started in this order."""
    with ThreadPoolExecutor(len(order)) as pool:
        started = [
            pool.submit(join_attempt, store, rank, len(order), timedelta(seconds=20))
            for rank in order
        ]
        return [future.result() for future in started]


def test_attempts_do_not_see_each_other():
    store = dist.HashStore()
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        parts = join_all(store, order)
        assert not parts[0].check(["address"])
        parts[0].set("address", "here")
        assert all(part.get("address") == b"here" for part in parts)


def test_greetings_of_the_dead_are_not_joined():
    store = dist.HashStore()
    store.set("greeting/1", "dead")
    with pytest.raises(TimeoutError, match=r"ranks \[1\] have not started"):
        join_attempt(store, 0, 2, timedelta(seconds=0.2))
    with pytest.raises(dist.DistStoreError):
        join_attempt(store, 1, 2, timedelta(seconds=0.2))


def test_one_process_joins_itself():
    assert not join_attempt(dist.HashStore(), 0, 1, timedelta(seconds=1)).check(["address"])
