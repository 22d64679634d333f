"""Multiply-adds of a network by module, counted with fvcore on a traced forward pass.

Counted: everything from the normalised image to classes and mask logits. Results computed from
these (up-sampling to the image, panoptic fusion) are not part of the network.
"""

from dataclasses import dataclass

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from proscale.ops.deformable_attention import multiply_adds

# What the papers call the encoder: input projections, deformable layers, mask features.
ENCODER = "sem_seg_head.pixel_decoder"


@dataclass(frozen=True)
class FlopCount:
    """Cost of one image.

    Attributes:
        size: (height, width) of the image, pixels.
        by_module: multiply-adds by module name; ``""`` is the whole network.
        by_operator: multiply-adds by operator name.
        uncounted: calls by name of the operators that have no count.
    """

    size: tuple[int, int]
    by_module: dict[str, int]
    by_operator: dict[str, int]
    uncounted: dict[str, int]

    @property
    def total(self) -> int:
        """Multiply-adds of the whole network."""
        return self.by_module[""]

    @property
    def encoder(self) -> int:
        """Multiply-adds of the pixel decoder."""
        return self.by_module[ENCODER]


@torch.no_grad()
def count_flops(model: nn.Module, size: tuple[int, int]) -> FlopCount:
    """Count the multiply-adds of a :class:`~proscale.modeling.MaskFormer`; neither data nor trained
    weights are needed.

    Args:
        model: the model; its mode is restored afterwards.
        size: (height, width), multiples of the model's ``size_divisibility``.
    """
    training = model.training
    network = _Network(model).eval()
    image = torch.zeros(1, 3, *size, device=model.device)
    analysis = FlopCountAnalysis(network, image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
    analysis.set_op_handle("proscale::deformable_attention", _deformable_flops)
    count = FlopCount(
        size=size,
        by_module=dict(analysis.by_module()),
        by_operator=dict(analysis.by_operator()),
        uncounted=dict(analysis.unsupported_ops()),
    )
    model.train(training)
    return count


class _Network(nn.Module):
    """The part of the model that is counted, its modules under their own names."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone, self.sem_seg_head = model.backbone, model.sem_seg_head

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.sem_seg_head(self.backbone(image))
        return outputs["pred_logits"], outputs["pred_masks"]


def _deformable_flops(inputs: list, outputs: list) -> int:
    value, _, locations, *_ = inputs
    return multiply_adds(value.type().sizes(), locations.type().sizes())


def _attention_flops(inputs: list, outputs: list) -> int:
    """Products of queries with keys, and of the weights with values."""
    query, key, value = (tensor.type().sizes() for tensor in inputs[:3])
    pairs = query[0] * query[1] * query[2] * key[2]
    return pairs * (query[3] + value[3])
