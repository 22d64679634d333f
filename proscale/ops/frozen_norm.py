"""Convolutions that carry the frozen norm behind them in their own weights.

Detectron2's ResNets freeze their batch norms. A frozen norm is a factor and a summand for every
channel: multiplied into the weights, which are few beside the maps, it costs no pass over the maps,
neither forward nor backward.
"""

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.ops.tracing import is_recorded


def fold_frozen_norms(module: nn.Module) -> None:
    """Let every Detectron2 ``Conv2d`` in ``module`` carry the frozen norm that follows it.

    Parameters, buffers and their names stay as they are, so that weights load as before and may
    change at any time.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is Conv2d and isinstance(child.norm, FrozenBatchNorm2d):
                setattr(parent, name, FoldedConv2d(child))


class FoldedConv2d(Conv2d):
    """``norm(convolution(x))`` as one convolution, then the activation."""

    def __init__(self, convolution: Conv2d):
        nn.Module.__init__(self)
        self.__dict__.update(convolution.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        # Whoever records operators (compilers, counters of multiply-adds) expects the model's own.
        if is_recorded():
            return super().forward(x)
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            bias = bias + self.bias * scale
        x = F.conv2d(
            x,
            self.weight * scale[:, None, None, None],
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return x if self.activation is None else self.activation(x)
