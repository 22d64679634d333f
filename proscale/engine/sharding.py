"""Sharded training: every rank holds a part of every parameter, of its gradient and of the
optimiser's state (Rajbhandari et al., ZeRO, SC 2020; PyTorch's ``fully_shard``).

A block's parameters are gathered when it computes, and resharded behind. Checkpoints hold whole
tensors, equal to those of a training that is not sharded; either kind resumes from the other's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module) -> None:
    """Divide the parameters of ``model``, those of rank 0, among all ranks.

    Blocks are the units: elements of lists and sequences that have modules with parameters in
    them, such as residual blocks and transformer layers. The other parameters are gathered for the
    whole step.

    ``model.load_state_dict`` takes whole tensors; ``state_dict`` gives parts, see :func:`whole`.
    """
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for parameter in model.parameters():
        # fully_shard accepts no other layout.
        parameter.data = parameter.data.contiguous()
        # Random initialisation differs by rank.
        distributed.broadcast(parameter.data, src=0)
    containers = (nn.ModuleList, nn.Sequential)
    lists = (module for module in model.modules() if isinstance(module, containers))
    # Once each: a head that all layers share is in a list under several numbers.
    elements = list(dict.fromkeys(element for container in lists for element in container))
    # Inner blocks first: an outer unit takes the parameters that no inner one has.
    for block in reversed(elements):
        has_parameters_within = any(list(child.parameters()) for child in block.children())
        if has_parameters_within and not isinstance(block, containers):
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    model.register_forward_hook(_end_failed_forward, always_call=True)
    model.register_load_state_dict_pre_hook(_divide_weights)


def divide_loaded_state(optimizer: torch.optim.Optimizer) -> None:
    """Have ``optimizer``, of a sharded model, take the state of one that is not."""
    optimizer.register_load_state_dict_pre_hook(_divide_optimizer_state)


def whole(state: Any, *, kept: bool) -> Any:
    """A ``state_dict`` with whole tensors on the CPU in place of parts; all ranks have to call it.

    Args:
        state: dictionaries and lists of tensors and other values.
        kept: whether this rank keeps the tensors; otherwise None takes their place.
    """
    if isinstance(state, DTensor):
        tensor = state.full_tensor()
        return tensor.cpu() if kept else None
    if isinstance(state, dict):
        # A copy, because PyTorch's state dicts have attributes, too.
        copied = copy(state)
        copied.update((name, whole(value, kept=kept)) for name, value in state.items())
        return copied
    if isinstance(state, list):
        return [whole(value, kept=kept) for value in state]
    return state


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within it every rank holds all parameters of ``model``, and may call it alone.

    All ranks have to enter it. A model that is not sharded is left as it is.
    """
    # An evaluation gives ranks different numbers of images: gathering layer by layer would hang.
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not model, recurse=False)


def _end_failed_forward(model: nn.Module, inputs: Any, output: Any) -> None:
    """Forward hook, also called after an exception, by which ``fully_shard``'s own is passed over:
    the next forward pass would take itself for a part of the failed one."""
    if output is None and isinstance(model, FSDPModule):
        model._get_fsdp_state()._post_forward(model, inputs, None)


def _divide_weights(model: nn.Module, state_dict: dict[str, Any], *_: object) -> None:
    """Put parts into ``state_dict`` where ``model`` has parts."""
    own = model.state_dict()
    for name, value in state_dict.items():
        if name in own:
            state_dict[name] = _divided(value, own[name])


def _divide_optimizer_state(
    optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
) -> dict[str, Any]:
    """A copy of ``state_dict`` with parts where the parameters are parts."""
    indices = [index for group in state_dict["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # PyTorch refuses a state of other groups.
    parameter_of = dict(zip(indices, parameters, strict=False))
    state = {
        index: {name: _divided(value, parameter_of.get(index)) for name, value in values.items()}
        for index, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _divided(value: Any, like: torch.Tensor | None) -> Any:
    """The parts of a whole tensor, if it belongs to one that is in parts."""
    # An optimiser's state also has numbers, such as its count of steps.
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    if not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements)
