"""Keeps what processes tell each other when they start apart from what dead ones have left.

When torchrun starts a job's processes again, they share a store with those before (PyTorch 2.14
does not tell the attempts apart), and would connect to addresses of processes that have ended.
"""

import secrets
import time
from datetime import timedelta

import torch.distributed as dist

_PAUSE = 0.02  # seconds


def meet(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """Wait for all processes of this attempt; every one of them has to call it.

    The first process draws a name for the attempt, and answers those who greet it with a number of
    their own. It may take a dead process's greeting for a living one's, but only the living
    confirm.

    Args:
        store: which all processes reach, with whatever earlier attempts have written.
        rank, world_size: of this process, and how many there are.
        timeout: how long to wait.

    Returns:
        a part of ``store`` in which no earlier attempt has written.

    Raises:
        DistStoreError: of other processes than the first, when the time is over.
        TimeoutError: of the first; names the missing ones.
    """
    own = secrets.token_hex(8)
    if rank == 0:
        attempt = own
        _receive(
            store, attempt, set(range(1, world_size)), time.monotonic() + timeout.total_seconds()
        )
    else:
        store.set(f"greeting/{rank}", own)
        store.wait([f"answer/{own}"], timeout)
        attempt = store.get(f"answer/{own}").decode()
        store.set(f"confirmation/{attempt}/{rank}", "")
    return dist.PrefixStore(attempt, store)


def _receive(store: dist.Store, attempt: str, missing: set[int], deadline: float) -> None:
    while missing:
        for rank in sorted(missing):
            if store.check([f"greeting/{rank}"]):
                store.set(f"answer/{store.get(f'greeting/{rank}').decode()}", attempt)
            if store.check([f"confirmation/{attempt}/{rank}"]):
                missing.remove(rank)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(missing)} have not started in time")
        time.sleep(_PAUSE)
