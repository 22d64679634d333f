"""Multiply-adds, activations and parameters of a network by module, counted with fvcore on a trace
in which nothing is computed.

The network is everything from the normalised image to classes and masks (or boxes, or the logits of
a semantic head, or the heatmaps of a pose estimator). Results computed from these are counted
apart, as their definitions read: masks resized to the image, and classes weighted by them.

fvcore counts multiply-adds: products of matrices and convolutions as they are, norms by five (four
without weights) and bilinear resizing by four for each number. In the same spirit a number that is
added to a mean or a norm counts one. Element-wise arithmetic, comparisons and copies are free, as
in the papers; they are listed so that an operator without a count is noticed.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import elementwise_flop_counter
from torch import Tensor, nn

from proscale.cost.shape_tracing import TracedShapes, without_memory
from proscale.modeling import MaskFormer, MaskFormerHead, PoseEstimator
from proscale.modeling.detection.head import DetectionHead
from proscale.modeling.pose import SegFormerPoseHead
from proscale.ops.deformable_attention import key_aware_multiply_adds, multiply_adds
from proscale.ops.fused import fuse_for_inference
from proscale.utils.types import Size

# The papers' encoder. Of segmentation: input projections, deformable layers, mask features; of
# detection: the layers alone.
ENCODER, DETECTION_ENCODER = "sem_seg_head.pixel_decoder", "detection_head.transformer.encoder"

Handle = Callable[[list[Any], list[Any]], int | Counter]

ATTENTION = "aten::scaled_dot_product_attention"
DEFORMABLE_ATTENTION = "proscale::deformable_attention"
KEY_AWARE_ATTENTION = "proscale::key_aware_deformable_attention"


def shape(value: Any) -> tuple[int, ...]:
    """Of a tensor in a trace."""
    return tuple(value.type().sizes())


def _attention(inputs: list, outputs: list) -> int:
    """Products of queries with keys, and of the weights with values."""
    # (B, heads, tokens, channels) each.
    query, key, value = map(shape, inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


#: Beyond fvcore's own; by operator.
HANDLES: dict[str, Handle] = {
    ATTENTION: _attention,
    # Values (B, ΣHW, M, D), shapes, locations (B, N, M, L, P, 2), weights.
    DEFORMABLE_ATTENTION: lambda inputs, _: multiply_adds(shape(inputs[0]), shape(inputs[2])),
    # Queries (B, N, M, D), values, shapes, locations.
    KEY_AWARE_ATTENTION: lambda inputs, _: key_aware_multiply_adds(
        shape(inputs[1]), shape(inputs[3])
    ),
    # Token merging: lengths of tokens, and averages; of every input, and every scattered number.
    "aten::linalg_vector_norm": elementwise_flop_counter(1, 0),
    "aten::avg_pool2d": elementwise_flop_counter(1, 0),
    "aten::scatter_reduce": lambda inputs, _: prod(shape(inputs[3])),
}

_PRODUCTS = "_convolution addmm bmm einsum linear matmul mm"
#: Operators whose outputs are activations (Dollár et al., Fast and Accurate Model Scaling, CVPR
#: 2021, §3: outputs of products).
ACTIVATION_SOURCES = {
    *(f"aten::{name}" for name in _PRODUCTS.split()),
    ATTENTION,
    DEFORMABLE_ATTENTION,
    KEY_AWARE_ATTENTION,
}

# Kind of an attention, and the place and axis of its tokens among its inputs: queries
# (…, tokens, channels), locations (B, N, M, L, P, 2), or queries (B, N, M, D).
_QUERIES = {
    ATTENTION: (ATTENTION, 0, -2),
    DEFORMABLE_ATTENTION: (DEFORMABLE_ATTENTION, 2, 1),
    KEY_AWARE_ATTENTION: (DEFORMABLE_ATTENTION, 0, 1),
}

# Arithmetic, activations, comparisons, selection, copies and views.
_FREE = """
    add sub rsub mul div neg reciprocal pow sqrt rsqrt exp log sin cos sum mean ceil
    gelu sigmoid softmax silu hardsigmoid hardswish hardtanh
    clamp_min clamp_max maximum minimum lt le ne any all __or__ logical_not where isinf
    max_pool2d topk sort argsort argmax amax feature_dropout
    index_select scatter masked_fill fill pad repeat clone unflatten
    expand_as mT mH movedim swapaxes unfold
"""
#: Not counted, beyond those that fvcore ignores; also in their in-place forms.
FREE = tuple(f"aten::{name}{form}" for name in _FREE.split() for form in ("", "_"))


@dataclass(frozen=True)
class FlopCount:
    """Cost of one image.

    Attributes:
        by_module: multiply-adds by module name; ``""`` is the whole network.
        by_operator: multiply-adds by operator name, without results.
        activations: numbers that products put out, by module name.
        parameters: by module name.
        queries: tokens that ask in each attention, by the name of its module, in order; deformable
            attention of an encoder only, or where there is none, any: in the pixel decoder, or in a
            model without one.
        results: multiply-adds from the network's outputs to results.
        uncounted: calls by name of the operators that have no count.
    """

    by_module: dict[str, int]
    by_operator: dict[str, int]
    activations: dict[str, int]
    parameters: dict[str, int]
    queries: dict[str, int]
    results: int
    uncounted: dict[str, int]

    @property
    def total(self) -> int:
        """Multiply-adds of the whole network."""
        return self.by_module[""]

    @property
    def products(self) -> int:
        """Multiply-adds of matrix products, attention and convolutions alone."""
        names = {name.partition("::")[2].lstrip("_") for name in ACTIVATION_SOURCES}
        return sum(number for name, number in self.by_operator.items() if name in names)

    @property
    def encoder(self) -> int:
        """Multiply-adds of the pixel decoder, or of a detector's encoder; :class:`KeyError` where
        the model has neither."""
        return self.by_module[DETECTION_ENCODER if DETECTION_ENCODER in self.by_module else ENCODER]


def count_flops(model: nn.Module, size: Size, *, fused: bool = False) -> FlopCount:
    """Count a model, which is left as it is, for an image of ``size`` (height, width) pixels before
    padding. Neither data nor weights are needed: see
    :func:`~proscale.cost.shape_tracing.build_without_weights`.

    Args:
        model: a :class:`~proscale.modeling.MaskFormer`, a :class:`~proscale.modeling.Detector`, a
            Detectron2 ``SemanticSegmentor``, or a :class:`~proscale.modeling.PoseEstimator`, one
            pass without the flip test.
        size: a pose estimator sees crops of its own input size instead.
        fused: count convolutions as :func:`~proscale.ops.fused.fuse_for_inference` makes them, and
            the pose head as it infers, fused at each stage's resolution.
    """
    # The image must be made as the parameters are: without memory.
    network, mode = without_memory(_Network(model, fused=fused))
    with mode:
        image = torch.empty(1, 3, *padded_size(model, size))
        network = fuse_for_inference(network) if fused else network
    analysis = _Analysis(network.eval(), image)
    with torch.no_grad(), TracedShapes():
        counts = analysis.by_module_and_operator()

    def by_operator(name: str, wanted: str) -> dict[str, int]:
        return {short: n for (kind, short), n in counts[name].items() if kind == wanted}

    def by_module(wanted: str) -> dict[str, int]:
        return {name: sum(by_operator(name, wanted).values()) for name in counts}

    def in_encoder(queries: dict[str, int]) -> dict[str, int]:
        encoders = (ENCODER, DETECTION_ENCODER)
        return {name: n for name, n in queries.items() if name.startswith(encoders)}

    attention = analysis.queries[ATTENTION]
    return FlopCount(
        by_module=by_module("multiply-adds"),
        by_operator=by_operator("", "multiply-adds"),
        activations=by_module("activations"),
        parameters={
            name: sum(parameter.numel() for parameter in module.parameters())
            for name, module in network.named_modules()
        },
        queries=in_encoder(analysis.queries[DEFORMABLE_ATTENTION])
        or in_encoder(attention)
        or attention,
        results=count_results(model, size, size),
        uncounted=dict(analysis.unsupported_ops()),
    )


def count_results(model: nn.Module, size: Size, result_size: Size) -> int:
    """Multiply-adds from masks to results of a :class:`~proscale.modeling.MaskFormer`."""
    # Other models end in their logits.
    if not isinstance(model, MaskFormer):
        return 0
    head = model.sem_seg_head
    queries, classes = head.predictor.test_queries, head.num_classes
    pixels = prod(result_size)
    # All masks are resized to the padded image and, cropped, to the result, four multiply-adds a
    # pixel each; semantic results weight all classes by them. Panoptic and instance results only
    # compare and copy.
    resized = 4 * (prod(padded_size(model, size)) + pixels)
    return queries * (resized + classes * pixels * model.semantic_on)


def padded_size(model: nn.Module, size: Size) -> Size:
    """The size that an image is padded to; of a pose estimator that of a person's crop."""
    if isinstance(model, PoseEstimator):
        width, height = model.codec.input_size
        return height, width
    # SemanticSegmentor takes the backbone's.
    owner: Any = model if hasattr(model, "size_divisibility") else model.backbone
    step = max(owner.size_divisibility, 1)
    height, width = (-(-length // step) * step for length in size)
    return height, width


def head_name(model: nn.Module) -> str:
    """The name of the head among the model's modules."""
    names = ("pose_head", "detection_head")
    return next((name for name in names if hasattr(model, name)), "sem_seg_head")


class _Network(nn.Module):
    """The part of the model that is counted, its modules under their own names."""

    def __init__(self, model: nn.Module, *, fused: bool):
        super().__init__()
        self.backbone = model.get_submodule("backbone")
        self.head_name = head_name(model)
        self.add_module(self.head_name, model.get_submodule(self.head_name))
        self.fused = fused

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features, head = self.backbone(image), self.get_submodule(self.head_name)
        if isinstance(head, SegFormerPoseHead):
            # As published counts have it: stages resized, then fused.
            return (head(features, published_order=not self.fused),)
        if isinstance(head, MaskFormerHead):
            # As published counts have it: every layer predicts, which inference here leaves out.
            outputs = head(features, auxiliary=True)
            return outputs["pred_logits"], outputs["pred_masks"]
        if isinstance(head, DetectionHead):
            # Every layer predicts, here as in the published model.
            outputs = head(features)
            return outputs["logits"], outputs["boxes"]
        logits, _losses = head(features)
        return (logits,)


class _Analysis(FlopCountAnalysis):
    """Counts multiply-adds and activations in one trace, and notes the tokens that attend."""

    def __init__(self, network: nn.Module, image: Tensor):
        super().__init__(network, image)
        self.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        self.tracer_warnings("none")
        #: tokens by module, for each kind of attention
        self.queries: dict[str, dict[str, int]] = {ATTENTION: {}, DEFORMABLE_ATTENTION: {}}
        # Every handle, fvcore's too, also counts activations.
        handles: dict[str, Handle] = {**self._op_handles, **HANDLES}
        self.set_op_handle(**{name: self._handle(name, handles[name]) for name in handles})
        self.set_op_handle(**dict.fromkeys(FREE))

    def _handle(self, operator: str, handle: Handle) -> Callable[[list, list], Counter]:
        short = operator.partition("::")[2].lstrip("_")

        def count(inputs: list, outputs: list) -> Counter:
            number = handle(inputs, outputs)
            if isinstance(number, Counter):
                number = sum(number.values())
            # fvcore adds counters up by module, with any keys.
            kinds = Counter({("multiply-adds", short): int(number)})
            if operator in ACTIVATION_SOURCES:
                kinds["activations", short] = prod(shape(outputs[0]))
            if operator in _QUERIES:
                module = outputs[0].node().scopeName().split("/")[-1]
                kind_of_attention, place, axis = _QUERIES[operator]
                self.queries[kind_of_attention][module] = shape(inputs[place])[axis]
            return kinds

        return count
