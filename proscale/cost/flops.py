"""Multiply-adds, activations and parameters of a network by module, counted with fvcore on a trace
in which nothing is computed.

Counted as the network: everything from the normalised image to classes and masks (or the logits of
a semantic head). Results computed from these, which are no part of the network, are counted apart,
as their definitions read: masks resized to the image, and classes weighted by them.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from proscale.cost.operators import (
    ACTIVATION_SOURCES,
    ATTENTION,
    DEFORMABLE_ATTENTION,
    FREE,
    HANDLES,
    Handle,
    shape,
)
from proscale.cost.shape_tracing import traced_shapes, without_memory
from proscale.modeling import MaskFormer, MaskFormerHead
from proscale.utils.types import Size

# What the papers call the encoder: input projections, deformable layers, mask features.
ENCODER = "sem_seg_head.pixel_decoder"


@dataclass(frozen=True)
class FlopCount:
    """Cost of one image.

    Attributes:
        size: (height, width) of the image, pixels, before padding.
        by_module: multiply-adds by module name; ``""`` is the whole network.
        by_operator: multiply-adds by operator name, without results.
        activations: numbers that products put out, by module name.
        parameters: by module name.
        queries: tokens that ask in each attention, by the name of its module, in order; deformable
            attention only, or where there is none, any.
        results: multiply-adds from the network's outputs to results.
        uncounted: calls by name of the operators that have no count.
    """

    size: Size
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
    def encoder(self) -> int:
        """Multiply-adds of the pixel decoder.

        Raises:
            KeyError: the model has none.
        """
        return self.by_module[ENCODER]

    def with_result(self, model: nn.Module, size: Size) -> "FlopCount":
        """The same network with results of another size than the image's."""
        return replace(self, results=count_results(model, self.size, size))


def count_flops(model: nn.Module, size: Size) -> FlopCount:
    """Count a :class:`~proscale.modeling.MaskFormer` or a Detectron2 ``SemanticSegmentor``; neither
    data nor trained weights are needed, nor their memory: see
    :func:`~proscale.cost.shape_tracing.build_without_weights`.

    Args:
        model: the model; it is left as it is.
        size: (height, width) of the image, pixels, before padding.
    """
    padded = padded_size(model, size)
    network, mode = without_memory(_Network(model))
    with mode:
        image = torch.empty(1, 3, *padded)
    analysis = _Analysis(network.eval(), image)
    with traced_shapes():
        counts = analysis.by_module_and_operator()
    return FlopCount(
        size=size,
        by_module={name: _sum(counts[name], "multiply-adds") for name in counts},
        by_operator={
            operator: number
            for (kind, operator), number in counts[""].items()
            if kind == "multiply-adds"
        },
        activations={name: _sum(counts[name], "activations") for name in counts},
        parameters={
            name: sum(parameter.numel() for parameter in module.parameters())
            for name, module in network.named_modules()
        },
        queries=analysis.queries(),
        results=count_results(model, size, size),
        uncounted=dict(analysis.unsupported_ops()),
    )


def count_results(model: nn.Module, size: Size, result_size: Size) -> int:
    """Multiply-adds from masks to results of a :class:`~proscale.modeling.MaskFormer`; other models
    end in their logits.

    All masks are resized to the padded image and, cropped, to the result, four multiply-adds a
    pixel each; for semantic results all classes are weighted by them. Panoptic and instance results
    only compare and copy.
    """
    if not isinstance(model, MaskFormer):
        return 0
    queries, classes = (
        model.sem_seg_head.predictor.query_feat.num_embeddings,
        model.sem_seg_head.num_classes,
    )
    pixels = prod(result_size)
    resized = 4 * (prod(padded_size(model, size)) + pixels)
    return queries * (resized + classes * pixels * model.semantic_on)


def padded_size(model: nn.Module, size: Size) -> Size:
    """The size that an image is padded to."""
    # SemanticSegmentor takes the backbone's.
    step = getattr(model, "size_divisibility", model.backbone.size_divisibility)
    step = max(step, 1)
    height, width = (-(-length // step) * step for length in size)
    return height, width


class _Network(nn.Module):
    """The part of the model that is counted, its modules under their own names."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone, self.sem_seg_head = model.backbone, model.sem_seg_head

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone(image)
        if isinstance(self.sem_seg_head, MaskFormerHead):
            # As published counts have it: every layer predicts, which inference here leaves out.
            outputs = self.sem_seg_head(features, auxiliary=True)
            return outputs["pred_logits"], outputs["pred_masks"]
        logits, _losses = self.sem_seg_head(features)
        return (logits,)


class _Analysis(FlopCountAnalysis):
    """Counts multiply-adds and activations in one trace, and notes who attends."""

    def __init__(self, network: nn.Module, inputs: Tensor | tuple[Tensor, ...]):
        super().__init__(network, inputs)
        self.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        self.tracer_warnings("none")
        self._queries: dict[str, dict[str, int]] = {ATTENTION: {}, DEFORMABLE_ATTENTION: {}}
        handles: dict[str, Handle] = {**self._op_handles, **HANDLES}
        self.set_op_handle(**{name: self._handle(name, handles[name]) for name in handles})
        self.set_op_handle(**dict.fromkeys(FREE))

    def queries(self) -> dict[str, int]:
        """See :class:`FlopCount`."""
        return self._queries[DEFORMABLE_ATTENTION] or self._queries[ATTENTION]

    def _handle(self, operator: str, handle: Handle) -> Handle:
        short = operator.partition("::")[2].lstrip("_")

        def count(inputs: list, outputs: list) -> Counter:
            number = handle(inputs, outputs)
            if isinstance(number, Counter):
                number = sum(number.values())
            kinds = Counter({("multiply-adds", short): int(number)})
            if operator in ACTIVATION_SOURCES:
                kinds["activations", short] = prod(shape(outputs[0]))
            if operator in self._queries:
                module = outputs[0].node().scopeName().split("/")[-1]
                attending = inputs[0 if operator == ATTENTION else 2]
                axis = -2 if operator == ATTENTION else 1
                self._queries[operator][module] = shape(attending)[axis]
            return kinds

        return count


def _sum(counts: Mapping[tuple[str, str], int], wanted: str) -> int:
    return sum(number for (kind, _), number in counts.items() if kind == wanted)
