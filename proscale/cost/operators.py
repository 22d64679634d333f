"""What the operators of our models cost, where fvcore does not say.

fvcore counts multiply-adds: products of matrices and convolutions as they are, norms by five (four
without weights) and bilinear resizing by four for each number. In the same spirit a number that is
added to a mean or a norm counts one. Element-wise arithmetic, comparisons and copies are free, as
in the papers' figures; they are listed so that an operator that nobody thought of is noticed.
"""

from collections.abc import Callable
from math import prod
from typing import Any

from proscale.ops.deformable_attention import multiply_adds

Handle = Callable[[list[Any], list[Any]], int]

ATTENTION = "aten::scaled_dot_product_attention"
DEFORMABLE_ATTENTION = "proscale::deformable_attention"


def shape(value: Any) -> tuple[int, ...]:
    """Of a tensor in a trace."""
    return tuple(value.type().sizes())


def _attention(inputs: list, outputs: list) -> int:
    """Products of queries with keys, and of the weights with values."""
    query, key, value = map(shape, inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _deformable(inputs: list, outputs: list) -> int:
    value, _, locations, *_ = inputs
    return multiply_adds(shape(value), shape(locations))


def _each_input(inputs: list, outputs: list) -> int:
    return prod(shape(inputs[0]))


def _each_scattered(inputs: list, outputs: list) -> int:
    _, _, _, source, *_ = inputs
    return prod(shape(source))


#: Beyond fvcore's own; by operator.
HANDLES: dict[str, Handle] = {
    ATTENTION: _attention,
    DEFORMABLE_ATTENTION: _deformable,
    # Token merging: lengths of tokens, and averages.
    "aten::linalg_vector_norm": _each_input,
    "aten::avg_pool2d": _each_input,
    "aten::scatter_reduce": _each_scattered,
}

#: Operators whose outputs are activations (Dollár et al., Fast and Accurate Model Scaling, CVPR
#: 2021, §3: outputs of products).
ACTIVATION_SOURCES = frozenset(
    {
        "aten::_convolution",
        "aten::addmm",
        "aten::bmm",
        "aten::einsum",
        "aten::linear",
        "aten::matmul",
        "aten::mm",
        ATTENTION,
        DEFORMABLE_ATTENTION,
    }
)

_ARITHMETIC = "add sub rsub mul div neg reciprocal pow sqrt rsqrt exp log sin cos sum mean ceil"
_ACTIVATIONS = "gelu sigmoid softmax silu hardsigmoid hardswish hardtanh"
_COMPARISONS = "clamp_min clamp_max maximum minimum lt le ne any all __or__ logical_not where isinf"
_SELECTION = "max_pool2d topk sort argsort argmax amax"
_COPIES = "index_select scatter masked_fill fill pad repeat clone unflatten"
_VIEWS = "expand_as mT mH movedim swapaxes unfold"

#: Counted nowhere, beyond what fvcore ignores; also in their in-place forms.
FREE = tuple(
    f"aten::{name}{form}"
    for group in (_ARITHMETIC, _ACTIVATIONS, _COMPARISONS, _SELECTION, _COPIES, _VIEWS)
    for name in group.split()
    for form in ("", "_")
)
