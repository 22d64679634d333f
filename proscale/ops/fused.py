"""Layers in fewer passes over memory: in tiles that stay in the cache, norms folded into weights.

The hidden activations of a layer are its largest tensors. Made on a CPU for a block of tokens, rows
or channels at a time, they never leave the cache. Each function gives the numbers of its reference
implementation, on whole tensors, which runs where :func:`should_tile` is false.

A batch norm with fixed statistics is a factor and a summand for every channel. Multiplied into the
weights of the convolution before it, it costs no pass over the maps, neither forward nor backward.
Detectron2's ResNets freeze their norms, in training too. Parallel convolutions whose outputs are
summed are one convolution with the sum of their kernels.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import reduce
from typing import Protocol

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.ops.tracing import use_reference
from proscale.utils.types import Size

# Tokens of a block: their hidden activations take 4 MiB at a width of 1024.
BLOCK_TOKENS = 1024
# Hidden activations of the rows of a map in map_rows, bytes: about a core's second-level cache.
ROWS_BYTES = 2**21
# Numbers of a block in max-pooling: 4 MiB of float32 stay in the cache from pass to pass.
POOL_NUMBERS = 2**20
# A map of the channels that are fused at a time, bytes, and the least number of channels.
CHANNELS_BYTES = 8 * 2**20
MIN_CHANNELS = 16


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision in float32, which places and boxes need; others as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def should_tile(tensor: Tensor) -> bool:
    """Whether to cut work on ``tensor`` into blocks that stay in a CPU's cache."""
    # Under autograd every block would keep a part of the graph.
    return tensor.device.type == "cpu" and not torch.is_grad_enabled() and not use_reference()


def feed_forward(
    tokens: Tensor, linear1: nn.Linear, linear2: nn.Linear, dropout: Callable[[Tensor], Tensor]
) -> Tensor:
    """Feed-forward network (Attention Is All You Need, §3.3): ``(…, C)`` to the same shape."""
    if not should_tile(tokens):
        # Autograd copies a linear layer's output, a view, when that is changed in place.
        return linear2(dropout(linear1(tokens).relu()))
    # Tokens are independent: any blocks will do.
    blocks = tokens.flatten(0, -2).split(BLOCK_TOKENS)
    updates = [linear2(dropout(linear1(block).relu_())) for block in blocks]
    return torch.cat(updates).view_as(tokens)


def to_map(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """``(B, H·W, C)`` as ``(B, C, H, W)`` in channels-last layout, without a copy."""
    # Channels stay innermost in memory: a view.
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def to_tokens(maps: Tensor) -> Tensor:
    """``(B, C, H, W)`` as ``(B, H·W, C)``, contiguous; without a copy where channels are last."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def map_rows(
    function: Callable[[Tensor, Size, slice], Tensor],
    tokens: Tensor,
    size: Size,
    *,
    hidden: int,
    halo: int = 0,
) -> Tensor:
    """A function of a map whose results depend on nearby rows only.

    Args:
        function: takes tokens ``(B, h·W, C)``, the size (h, W) of their map, and which of its rows
            are wanted; returns these rows, ``(B, rows·W, C)``.
        tokens: ``(B, H·W, C)``.
        size: (H, W).
        hidden: width of the activations that ``function`` makes on the way.
        halo: rows above and below that a row depends on.

    Returns:
        ``function(tokens, size, slice(0, H))``, ``(B, H·W, C)``.
    """
    height, width = size
    if not should_tile(tokens):
        return function(tokens, size, slice(0, height))
    step = max(1, ROWS_BYTES // (width * len(tokens) * hidden * tokens.element_size()))
    # Strips of whole rows, with as many rows as keep the hidden activations in the cache.
    outputs = torch.empty_like(tokens)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        # The strip with its halo, as far as the map reaches.
        first, last = max(top - halo, 0), min(bottom + halo, height)
        strip = tokens[:, first * width : last * width]
        wanted = slice(top - first, bottom - first)
        outputs[:, top * width : bottom * width] = function(strip, (last - first, width), wanted)
    return outputs


def max_pool_3x3(maps: Tensor) -> Tensor:
    """3x3 max-pooling of stride one, ``(B, C, H, W)`` to the same shape.

    ``maps`` may be overwritten where no gradient is wanted.
    """
    # On a CPU PyTorch pools neighbouring channels together several times as fast.
    maps = maps.contiguous(memory_format=torch.channels_last)
    if not should_tile(maps):
        return F.max_pool2d(maps, 3, stride=1, padding=1)
    # PyTorch's own also writes where it found the maxima, twice as many bytes as these.
    for rows in maps.permute(0, 2, 3, 1):  # (H, W, C)
        step = max(1, POOL_NUMBERS // rows[0].numel())
        above = rows[:1].clone()
        for start in range(0, len(rows), step):
            stop = min(start + step, len(rows))
            above = _pool_rows(rows[start:stop], above, below=rows[stop : stop + 1])
    return maps


def _pool_rows(block: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """Pool rows ``(H, W, C)`` in place; returns the last of them as it was.

    ``above`` and ``below`` are the neighbouring rows as they were before they were pooled,
    ``(1, W, C)``; the latter is empty behind the last row.
    """
    last = block[-1:].clone()
    # Along the columns of the map: each row with the one above and the one below.
    tallest = torch.empty_like(block)
    torch.maximum(block[:1], above, out=tallest[:1])
    torch.maximum(block[1:], block[:-1], out=tallest[1:])
    torch.maximum(tallest[:-1], block[1:], out=tallest[:-1])
    if len(below):
        torch.maximum(tallest[-1:], below, out=tallest[-1:])
    # Along the rows: the pairs of neighbours, and of these the two that share a cell.
    if block.shape[1] == 1:
        block.copy_(tallest)
        return last
    pairs = torch.maximum(tallest[:, 1:], tallest[:, :-1])
    block[:, 0], block[:, -1] = pairs[:, 0], pairs[:, -1]
    torch.maximum(pairs[:, 1:], pairs[:, :-1], out=block[:, 1:-1])
    return last


def reduce_bilinear(maps: Tensor, size: Size) -> Tensor:
    """Bilinear resizing to a smaller ``size``, without anti-aliasing: ``(B, C, H, W)`` to
    ``(B, C, *size)``."""
    steps = [length // smaller for length, smaller in zip(maps.shape[-2:], size, strict=True)]
    whole = all(
        step % 2 == 0 and step * smaller == length
        for step, length, smaller in zip(steps, maps.shape[-2:], size, strict=True)
    )
    if use_reference() or maps.device.type != "cpu" or not whole:
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    # By an even factor a cell's centre lies midway between the two middle ones of those that it
    # stands for, along each axis. PyTorch's own works through such maps number by number.
    (row, rows), (column, columns) = ((step // 2 - 1, step) for step in steps)
    pairs = maps[..., row::rows, :] + maps[..., row + 1 :: rows, :]
    return (pairs[..., column::columns] + pairs[..., column + 1 :: columns]) / 4


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


def has_fixed_statistics(norm: BatchNorm) -> bool:
    """Whether a batch norm applies its running statistics, not those of the batch."""
    # Statistics of a batch are known only after the convolution.
    return isinstance(norm, FrozenBatchNorm2d) or not norm.training


def fold_norm(convolution: nn.Conv2d, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that computes ``norm(convolution(x))``."""
    # s · (w * x + b) + t = (s · w) * x + (s · b + t)
    scale, bias = norm_affine(norm)
    if convolution.bias is not None:
        bias = bias + convolution.bias * scale
    return convolution.weight * scale[:, None, None, None], bias


def convolve(convolution: Conv2d, x: Tensor) -> Tensor:
    """``activation(norm(convolution(x)))``; one convolution where the statistics are fixed."""
    if not has_fixed_statistics(convolution.norm):
        return convolution(x)
    x = F.conv2d(
        x,
        *fold_norm(convolution, convolution.norm),
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

    Parameters, buffers and their names stay, so that weights load as before and may change.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is Conv2d and isinstance(child.norm, FrozenBatchNorm2d):
                setattr(parent, name, FoldedConv2d(child))


class FusibleConvolution(nn.Module):
    """``activation(Σ norm(convolution(x)))``: one convolution where the statistics are fixed.

    The branches of a sum are parallel square convolutions of the same stride, each padded by half
    its kernel and followed by a batch norm. One branch is a convolution and its norm; two, 3x3 and
    1x1, are a RepVGG block (Ding et al., RepVGG, CVPR 2021, §3.3). A subclass has :attr:`branches`
    and :attr:`activation`.
    """

    activation: Callable[[Tensor], Tensor] | None = None

    @property
    def branches(self) -> Sequence[tuple[nn.Conv2d, BatchNorm]]:
        """Convolution and norm of each branch; the first has the largest kernel."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to ``(B, C, ⌈H/stride⌉, ⌈W/stride⌉)``."""
        branches = self.branches
        if use_reference() or not all(has_fixed_statistics(norm) for _, norm in branches):
            x = sum_tensors([norm(convolution(x)) for convolution, norm in branches])
        else:
            first, _ = branches[0]
            x = F.conv2d(x, *self.fused_weights(), first.stride, first.padding)
        return x if self.activation is None else self.activation(x)

    def fused_weights(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution, by the running statistics."""
        weights, biases = zip(*(fold_norm(*branch) for branch in self.branches), strict=True)
        # A smaller kernel is a larger one with zeros around it, and convolution is linear.
        size = weights[0].shape[-1]
        padded = [F.pad(w, [(size - w.shape[-1]) // 2] * 4) for w in weights]
        return sum_tensors(padded), sum_tensors(biases)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """A module of the one convolution, for inference only."""
        first, _ = self.branches[0]
        weight, bias = self.fused_weights()
        (width, channels, size, _), stride = weight.shape, first.stride[0]
        # On the meta device no weights are drawn.
        fused = nn.Conv2d(channels, width, size, stride, padding=size // 2, device="meta")
        fused.weight, fused.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        return FusedConvolution(fused, self.activation)


class FusedConvolution(nn.Module):
    """What :meth:`FusibleConvolution.fuse` makes: ``activation(convolution(x))``."""

    def __init__(self, convolution: nn.Conv2d, activation: Callable[[Tensor], Tensor] | None):
        super().__init__()
        self.convolution, self.activation = convolution, activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
        return x if self.activation is None else self.activation(x)


def sum_tensors(tensors: Sequence[Tensor]) -> Tensor:
    """Their sum, without the zero that Python's begins with."""
    return reduce(torch.add, tensors)


def fuse_for_inference(module: nn.Module) -> nn.Module:
    """``module`` in evaluation mode with every :class:`FusibleConvolution` as one convolution.

    It computes the same function, and cannot be trained. A copy, which shares all other weights;
    ``module`` itself where there is nothing to fuse.
    """
    if not any(isinstance(child, FusibleConvolution) for child in module.modules()):
        return module
    # Copying a module copies its tensors, but for those that the memo has.
    tensors = [*module.parameters(), *module.buffers()]
    module = deepcopy(module, {id(tensor): tensor for tensor in tensors}).eval()
    _fuse_children(module)
    return module


def _fuse_children(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, FusibleConvolution):
            setattr(module, name, child.fuse())
        else:
            _fuse_children(child)


def fuse_and_classify(
    maps: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    norm: BatchNorm,
    dropout: nn.Module,
    classifier: nn.Conv2d,
) -> Tensor:
    """``classifier(dropout(relu(norm(Σ resized(maps[i] * weights[i]) + bias))))``.

    Args:
        maps: ``(B, channels, h, w)`` each; all are resized to the first, bilinearly.
        weights, bias: ``(C, channels, 1, 1)`` for each map; ``(C,)`` or None.
        norm: a batch normalisation of C channels.

    Returns:
        ``(B, K, h, w)`` of the first map's size.
    """
    if norm.training:
        return classifier(dropout(F.relu_(norm(_sum_of_maps(maps, weights, bias)))))
    # In evaluation the norm is folded into the weights, and a few of the C channels are fused at a
    # time: each meets the others only in the sum that the classifier makes.
    scale, shift = norm_affine(norm)
    weights = [weight * scale[:, None, None, None] for weight in weights]
    bias = shift if bias is None else shift + scale * bias

    finest, chunk = maps[0], len(bias)
    if finest.device.type == "cpu" and not use_reference():
        chunk = max(CHANNELS_BYTES // (finest[:, 0].numel() * finest.element_size()), MIN_CHANNELS)
    logits: Tensor | None = None
    for *parts, part_bias, part_classifier in zip(
        *(weight.split(chunk) for weight in weights),
        bias.split(chunk),
        classifier.weight.split(chunk, dim=1),
        strict=True,
    ):
        fused = F.relu_(_sum_of_maps(maps, parts, part_bias))
        if logits is None:
            logits = F.conv2d(fused, part_classifier, classifier.bias)
        else:
            logits += F.conv2d(fused, part_classifier)
    assert logits is not None
    return logits


def _sum_of_maps(maps: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """Convolve every map at its own resolution; their sum at that of the first one."""
    # A 1x1 convolution and bilinear resizing commute: convolve first, where maps are small.
    total = F.conv2d(maps[0], weights[0], bias)
    for x, weight in zip(maps[1:], weights[1:], strict=True):
        part = F.conv2d(x, weight)
        total += F.interpolate(part, size=total.shape[-2:], mode="bilinear", align_corners=False)
    return total


def softmax_small_dim(logits: Tensor) -> Tensor:
    """Softmax over a last dimension that is shorter than a CPU's vectors."""
    if logits.device.type != "cpu":
        return logits.softmax(-1)
    # PyTorch's own works through such rows number by number.
    exponentials = (logits - logits.amax(-1, keepdim=True)).exp_()
    return exponentials / exponentials.sum(-1, keepdim=True)
