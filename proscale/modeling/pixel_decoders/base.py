"""Base of the pixel decoders: an encoder of the coarse levels, a pyramid of the finer ones.

The coarse levels of the backbone go through a transformer encoder, the finer ones join its finest
output top-down, and a 1x1 convolution makes the mask features (Mask2Former, §3.2.1 and §A). A pixel
decoder of its own brings another encoder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.errors import ConfigError
from proscale.modeling.pixel_decoders.deformable_encoder import TokenPlan, plan_tokens
from proscale.ops.fused import max_pool_3x3, to_map, to_tokens
from proscale.utils.types import Size

GROUPS = 32  # of the group norm behind the encoder's input projections
NUM_DECODER_LEVELS = 3  # levels that the transformer decoder attends in turn
MASK_OUTPUT_OPS = ("maxpool", "conv")


@dataclass(frozen=True)
class PyramidArguments:
    """Levels and widths of a pixel decoder."""

    conv_dim: int  #: width C of encoder and pyramid
    mask_dim: int  #: channels of the mask features
    norm: str  #: Detectron2's name of the pyramid's norm
    transformer_in_features: Sequence[str]  #: levels that the encoder sees
    common_stride: int  #: stride of the mask features

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "PyramidArguments":
        node = cfg.MODEL.SEM_SEG_HEAD
        return cls(
            conv_dim=node.CONVS_DIM,
            mask_dim=node.MASK_DIM,
            norm=node.NORM,
            transformer_in_features=node.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            common_stride=node.COMMON_STRIDE,
        )


class LightPixelEmbedding(nn.Module):
    """The Light-Pixel Embedding (PRO-SCALE, §3): max-pooling where Mask2Former convolves.

    3x3 max-pooling of stride one, norm (Detectron2's name), ReLU: context without weights.
    """

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.norm = get_norm(norm, channels) or nn.Identity()

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape, values ≥ 0.

        ``feature`` may be overwritten where no gradient is wanted.
        """
        # No kernel to learn and few operations: the context of the 3x3 convolution for free.
        return self.norm(max_pool_3x3(feature)).relu_()


class LevelTransformer(nn.Module):
    """An encoder over the tokens of several levels, with a learned embedding for each level.

    ``encoder`` takes the levels' tokens, coarse to fine, and their
    :class:`~proscale.modeling.pixel_decoders.deformable_encoder.TokenPlan`, and returns the
    levels' tokens. ``encoding`` are arguments of the position encoding, see
    :func:`~proscale.modeling.pixel_decoders.deformable_encoder.plan_tokens`.
    """

    def __init__(self, encoder: nn.Module, n_levels: int, d_model: int, **encoding: Any):
        super().__init__()
        # Added to the positions, one for each level.
        self.level_embed = nn.Parameter(torch.randn(n_levels, d_model))
        self.encoder = encoder
        self.encoding = encoding

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``maps``: ``(B, C, H, W)`` of each level, coarse to fine; returns the same shapes."""
        levels, plan = self.encode(maps)
        return [to_map(*level) for level in zip(levels, plan.spatial_shapes, strict=True)]

    def encode(
        self, maps: Sequence[Tensor], valid_shapes: Sequence[Sequence[Size]] = ()
    ) -> tuple[list[Tensor], TokenPlan]:
        """The encoded tokens ``(B, H·W, C)`` of each level of ``maps``, and their plan; for
        ``valid_shapes`` see :func:`~.deformable_encoder.plan_tokens`."""
        shapes = [(feature.shape[2], feature.shape[3]) for feature in maps]
        # Positions and reference points depend on the sizes alone: one plan serves all layers.
        plan = plan_tokens(shapes, self.level_embed, valid_shapes=valid_shapes, **self.encoding)
        # (B, C, H, W) to tokens (B, H·W, C).
        return self.encoder([to_tokens(feature) for feature in maps], plan), plan


class PixelDecoder(nn.Module):
    """An encoder over the coarse levels, a feature pyramid over the finer ones.

    The encoder is one of tokens, within a :class:`LevelTransformer`; a decoder whose encoder takes
    maps overrides :meth:`add_encoder` and :meth:`encode`.

    Args:
        input_shape: channels and stride of the backbone's levels.
        pyramid: levels and widths.
        encoder: see :meth:`add_encoder`; it sees ``pyramid.transformer_in_features``.
        projection: from the channels of a level and C to the module that projects it; None is a 1x1
            convolution with bias, then group norm.
        mask_output_ops: context of a pyramid level: ``"conv"``, 3x3 convolution, norm and ReLU, or
            ``"maxpool"``, the :class:`LightPixelEmbedding`.

    Raises:
        ConfigError: the backbone's levels are not those that the decoder needs.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        pyramid: PyramidArguments,
        *,
        encoder: nn.Module,
        projection: Callable[[int, int], nn.Module] | None = None,
        mask_output_ops: str = "conv",
    ):
        super().__init__()
        conv_dim, norm, common_stride = pyramid.conv_dim, pyramid.norm, pyramid.common_stride
        if mask_output_ops not in MASK_OUTPUT_OPS:
            raise ValueError(
                f"mask_output_ops is {mask_output_ops!r}: expected {' or '.join(MASK_OUTPUT_OPS)}"
            )
        # Levels of the encoder, coarse to fine; levels of the pyramid, fine to coarse.
        names = pyramid.transformer_in_features
        self.transformer_in_features = coarse_to_fine(input_shape, names)
        self.pyramid_features = pyramid_levels(
            input_shape, self.transformer_in_features, common_stride
        )
        # The transformer decoder takes the coarsest three of encoder and pyramid together.
        available = len(self.transformer_in_features) + len(self.pyramid_features)
        if available < NUM_DECODER_LEVELS:
            raise ConfigError(
                f"the transformer decoder needs {NUM_DECODER_LEVELS} levels, but "
                f"transformer_in_features {list(names)} and common_stride "
                f"{common_stride} make {available}"
            )
        if conv_dim % GROUPS:
            raise ValueError(f"conv_dim is {conv_dim}: expected multiples of {GROUPS}")

        # The encoder's levels at C channels.
        project = projection or project_level
        self.input_proj = nn.ModuleList(
            project(input_shape[name].channels, conv_dim) for name in self.transformer_in_features
        )
        self.add_encoder(encoder, conv_dim)
        # Numbered from the finest level, as in the published checkpoints.
        for number, name in enumerate(self.pyramid_features, start=1):
            self.add_module(
                f"adapter_{number}",
                _convolution(input_shape[name].channels, conv_dim, 1, norm),
            )
            self.add_module(
                f"layer_{number}",
                LightPixelEmbedding(conv_dim, norm)
                if mask_output_ops == "maxpool"
                else _convolution(conv_dim, conv_dim, 3, norm, activation=F.relu),
            )
        # Per-pixel embeddings, whose products with the queries' are the masks.
        self.mask_features = Conv2d(conv_dim, pyramid.mask_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.mask_features)

    def add_encoder(self, encoder: nn.Module, conv_dim: int) -> None:
        """Register the encoder under its name in published checkpoints."""
        self.transformer = LevelTransformer(encoder, len(self.transformer_in_features), conv_dim)

    def encode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``maps``: ``(B, C, H, W)`` of each level, coarse to fine; returns the same shapes."""
        return self.transformer(maps)

    def forward_features(
        self, features: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Decode features ``(B, channels, ⌈H/stride⌉, ⌈W/stride⌉)`` by level name.

        Returns:
            mask features ``(B, mask_dim, H/common_stride, W/common_stride)``; the encoded coarsest
            level; and the three coarsest levels, coarse to fine, ``(B, conv_dim, …)`` each.
        """
        levels = self.decode(features)
        # The finest map makes the masks, the three coarsest are attended in turn.
        return self.mask_features(levels[-1]), levels[0], levels[:NUM_DECODER_LEVELS]

    def decode(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """All levels of :meth:`forward_features`, coarse to fine, ``(B, conv_dim, …)`` each; the
        last one has the size of the mask features."""
        # 1x1 convolution and norm bring every level to C channels; then the encoder.
        levels = self.encode(
            [
                project(features[name])
                for project, name in zip(self.input_proj, self.transformer_in_features, strict=True)
            ]
        )
        # Top-down: the finer level's lateral projection plus the up-sampled coarser level, then
        # context from neighbours (FPN, §3; Light-Pixel Embedding in PRO-SCALE).
        for number, name in reversed(list(enumerate(self.pyramid_features, start=1))):
            lateral = self.get_submodule(f"adapter_{number}")(features[name])
            # Bilinear, not nearest as in FPN. A copy, because PyTorch resizes a slice of the tokens
            # several times as slowly.
            above = F.interpolate(
                levels[-1].clone(memory_format=torch.channels_last),
                size=lateral.shape[-2:],
                mode="bilinear",
                align_corners=False,
            )
            levels.append(self.get_submodule(f"layer_{number}")(above.add_(lateral)))
        return levels


def coarse_to_fine(input_shape: Mapping[str, ShapeSpec], names: Sequence[str]) -> list[str]:
    """``names`` by falling stride."""
    unknown = [name for name in names if name not in input_shape]
    if unknown or not names:
        raise ConfigError(
            f"transformer_in_features is {list(names)}: expected one or more of "
            f"{sorted(input_shape)}"
        )
    # The coarsest level has the largest stride.
    return sorted(names, key=lambda name: -input_shape[name].stride)


def pyramid_levels(
    input_shape: Mapping[str, ShapeSpec], transformer_levels: Sequence[str], common_stride: int
) -> list[str]:
    """Names of the levels between the mask features and the encoder's finest, fine to coarse."""
    # Each level doubles the resolution, from the encoder's finest to the mask features.
    finest = min(input_shape[name].stride for name in transformer_levels)
    names = sorted(
        (name for name in input_shape if common_stride <= input_shape[name].stride < finest),
        key=lambda name: input_shape[name].stride,
    )
    strides = [input_shape[name].stride for name in names] + [finest]
    if strides[0] != common_stride or any(fine * 2 != coarse for fine, coarse in pairwise(strides)):
        raise ConfigError(
            f"common_stride is {common_stride}: the levels "
            f"{ {name: input_shape[name].stride for name in sorted(input_shape)} } do not lead "
            f"from the encoder's finest stride, {finest}, down to it in steps of two"
        )
    return names


class _GroupNorm(nn.GroupNorm):
    """Group norm that takes a map of one pixel."""

    # PyTorch's module refuses a single image with one value per group, but not two such images. A
    # lone value is its own mean in both cases, so that the bias is left.
    def forward(self, maps: Tensor) -> Tensor:
        return torch.group_norm(maps, self.num_groups, self.weight, self.bias, self.eps)


def project_level(channels: int, conv_dim: int, stride: int = 1) -> nn.Module:
    """A level at ``conv_dim`` channels: 1x1 convolution with bias, then group norm. With a stride
    of two, which makes a coarser level, the convolution is 3x3."""
    size = 1 if stride == 1 else 3
    convolution = nn.Conv2d(channels, conv_dim, size, stride, padding=size // 2)
    nn.init.xavier_uniform_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(convolution, _GroupNorm(GROUPS, conv_dim))


def _convolution(
    channels: int,
    conv_dim: int,
    size: int,
    norm: str,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Conv2d:
    # A norm makes the bias superfluous.
    convolution = Conv2d(
        channels,
        conv_dim,
        kernel_size=size,
        padding=size // 2,
        bias=norm == "",
        norm=get_norm(norm, conv_dim),
        activation=activation,
    )
    weight_init.c2_xavier_fill(convolution)
    return convolution
