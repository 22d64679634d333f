"""Trace a network without computing anything: only shapes are worked out.

fvcore counts on a trace by ``torch.jit``. A traced forward pass of a large model takes a minute on
a CPU, and its numbers are of no interest. Here parameters and inputs are PyTorch's fake tensors,
which have shapes and a device but no memory: a trace takes a second or two. :class:`TracedShapes`
makes up for two things that tracing expects of real tensors.
"""

import copy

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_CPU = torch.device("cpu")
_TRACER = "Tracer"  # the dispatch key


def build_without_weights(cfg: CfgNode) -> nn.Module:
    """The model of ``cfg`` on the meta device: parameters without memory, made in no time.

    Raises:
        ValueError: no model can be built from ``cfg``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def without_memory(model: nn.Module) -> tuple[nn.Module, FakeTensorMode]:
    """A copy of the model whose parameters and buffers are fake tensors on the CPU, and the mode
    that its inputs must be made in."""
    # Maps of coordinates that a model makes for itself stay real.
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        return FakeTensor(mode, tensor.detach().to("meta"), _CPU)

    # Copying a module copies its tensors, but for those that the memo has replaced.
    replaced: dict[int, Tensor] = {
        id(parameter): nn.Parameter(fake(parameter), requires_grad=False)
        for parameter in model.parameters()
    }
    replaced |= {id(buffer): fake(buffer) for buffer in model.buffers()}
    return copy.deepcopy(model, replaced), mode


class TracedShapes(TorchDispatchMode):
    """Within it ``torch.jit`` can trace models of :func:`without_memory`, without gradients: keeps
    a trace complete, and shapes numbers.

    - Convolutions enter a trace as ``_convolution``, which a fake convolution never gets to: it is
      called here.
    - While a trace is made, lengths read from a tensor are tensors. That is not meant for the code
      that works out shapes, so tracing pauses for it: all that arrives here is recorded already.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        state = torch._C._get_tracing_state()
        if state is None:
            return func(*args, **kwargs)
        set_state = torch._C._set_tracing_state  # type: ignore[attr-defined]  # not in the stubs
        # The tracer excludes itself while an operator runs: let it in for calls made here.
        excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(_TRACER)
        torch._C._dispatch_tls_set_dispatch_key_excluded(_TRACER, False)
        try:
            if func is torch.ops.aten.convolution.default:
                # Recorded, because the tracer sees the calls made here.
                with self:
                    return torch.ops.aten._convolution(*args, False, False, False, False)
            # Everything else is recorded already: work out its shape unseen.
            set_state(None)
            return func(*args, **kwargs)
        finally:
            set_state(state)
            torch._C._dispatch_tls_set_dispatch_key_excluded(_TRACER, excluded)
