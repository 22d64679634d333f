"""Convolutions that carry the norm behind them in their own weights.

A batch norm with fixed statistics is a factor and a summand for every channel. Multiplied into the
weights, which are few beside the maps, it costs no pass over the maps, neither forward nor
backward. Detectron2's ResNets freeze their norms, in training too.
"""

from typing import Protocol

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.ops.tracing import use_reference


class BatchNorm(Protocol):
    """A batch normalisation with running statistics and learned affine parameters."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float
    training: bool

    def __call__(self, maps: Tensor, /) -> Tensor: ...


def norm_affine(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """``(scale, shift)``, (C,) each, that a batch norm applies by its running statistics."""
    # weight · (x - mean) / sqrt(var + eps) + bias = scale · x + shift
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def convolve(convolution: Conv2d, x: Tensor) -> Tensor:
    """``activation(norm(convolution(x)))``; one convolution where the statistics are fixed."""
    # Statistics of a batch are known only after the convolution.
    if convolution.norm.training and not isinstance(convolution.norm, FrozenBatchNorm2d):
        return convolution(x)
    # s · (w * x + b) + t = (s · w) * x + (s · b + t)
    scale, bias = norm_affine(convolution.norm)
    if convolution.bias is not None:
        bias = bias + convolution.bias * scale
    x = F.conv2d(
        x,
        convolution.weight * scale[:, None, None, None],
        bias,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )
    return x if convolution.activation is None else convolution.activation(x)


class FoldedConv2d(Conv2d):
    """Detectron2's ``Conv2d`` with a frozen norm, computed as one convolution."""

    def __init__(self, convolution: Conv2d):
        nn.Module.__init__(self)
        self.__dict__.update(convolution.__dict__)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if use_reference() else convolve(self, x)


def fold_frozen_norms(module: nn.Module) -> None:
    """Let every Detectron2 ``Conv2d`` in ``module`` carry the frozen norm that follows it.

    Parameters, buffers and their names stay as they are, so that weights load as before and may
    change at any time.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is Conv2d and isinstance(child.norm, FrozenBatchNorm2d):
                setattr(parent, name, FoldedConv2d(child))
