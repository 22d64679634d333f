"""What processes that train together have to know of each other before they go on."""

import torch
from detectron2.utils import comm


def all_reduce_max(value: int) -> int:
    """The largest ``value`` of all processes; every one of them has to ask."""
    if comm.get_world_size() == 1:
        return value
    largest = torch.tensor(value)
    # On the CPU, with Detectron2's own group for that: a GPU would have to be waited for.
    torch.distributed.all_reduce(
        largest, torch.distributed.ReduceOp.MAX, group=comm._get_global_gloo_group()
    )
    return int(largest)
