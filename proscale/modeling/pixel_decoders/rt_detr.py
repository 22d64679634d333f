"""RT-M2F: RT-DETR's hybrid encoder in Mask2Former's pixel decoder (Zhao et al., DETRs Beat YOLOs on
Real-time Object Detection, CVPR 2024, §4.2).

Attention within the coarsest level alone (AIFI), then convolutions fuse the levels top-down and
bottom-up (CCFF). Nothing is sampled: the comparison of PRO-SCALE with an encoder of convolutions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.modeling.attention import Attention
from proscale.modeling.pixel_decoders.base import (
    PixelDecoder,
    PyramidArguments,
    coarse_to_fine,
)
from proscale.ops.fused import BatchNorm, FusibleConvolution, to_map, to_tokens
from proscale.ops.tracing import cached_table

NORMS = ("BN", "SyncBN", "FrozenBN")
TEMPERATURE = 10000.0  # of the sine encoding
BLOCKS = 3  # RepVGG blocks of a CSP block, as in RT-DETR's R50


@dataclass(frozen=True)
class HybridEncoderArguments:
    """Widths of RT-DETR's hybrid encoder."""

    d_model: int  #: C, of the levels
    num_layers: int  #: of self-attention within each of ``attended``
    n_heads: int
    d_ffn: int  #: width of the feed-forward networks
    attended: Sequence[str]  #: levels with attention within
    expansion: float  #: e: a CSP block's hidden width is ⌊e·C⌋
    norm: str  #: Detectron2's name of the batch norm, one of :data:`NORMS`

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "HybridEncoderArguments":
        node = cfg.MODEL.RT_DETR_ENCODER
        return cls(
            d_model=node.HIDDEN_DIM,
            num_layers=node.NUM_LAYERS,
            n_heads=node.NHEADS,
            d_ffn=node.DIM_FEEDFORWARD,
            attended=node.USE_ENCODER_LEVELS,
            expansion=node.EXPANSION,
            norm=node.NORM,
        )

    def __post_init__(self) -> None:
        if self.d_model % 4 or self.d_model % self.n_heads:
            raise ValueError(
                f"d_model is {self.d_model}: expected multiples of 4 and of n_heads, {self.n_heads}"
            )
        if self.norm not in NORMS:
            raise ValueError(f"norm is {self.norm!r}: expected {', '.join(NORMS)}")
        if self.hidden_dim < 1:
            raise ValueError(f"expansion is {self.expansion}: expected numbers above 0")

    @property
    def hidden_dim(self) -> int:
        """Width within a CSP block."""
        return int(self.d_model * self.expansion)


class ConvNorm(FusibleConvolution):
    """Convolution without bias, batch norm, SiLU or no activation."""

    def __init__(
        self, channels: int, width: int, size: int, norm: str, *, stride: int = 1, silu: bool = True
    ):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, size, stride, padding=size // 2, bias=False)
        self.norm = get_norm(norm, width)
        self.activation = F.silu if silu else None

    @property
    def branches(self) -> Sequence[tuple[nn.Conv2d, BatchNorm]]:
        return [(self.conv, self.norm)]


class LevelProjection(FusibleConvolution, nn.Sequential):
    """1x1 convolution without bias and batch norm, with the names of a sequence's elements."""

    def __init__(self, channels: int, width: int, norm: str):
        super().__init__(nn.Conv2d(channels, width, 1, bias=False), get_norm(norm, width))

    @property
    def branches(self) -> Sequence[tuple[nn.Conv2d, BatchNorm]]:
        convolution, norm = self
        return [(convolution, norm)]  # type: ignore[list-item]


class RepVGGBlock(FusibleConvolution):
    """SiLU of a 3x3 and a 1x1 convolution's sum, each with its norm, without identity (RepVGG)."""

    def __init__(self, width: int, norm: str):
        super().__init__()
        self.conv1 = ConvNorm(width, width, 3, norm, silu=False)
        self.conv2 = ConvNorm(width, width, 1, norm, silu=False)
        self.activation = F.silu

    @property
    def branches(self) -> Sequence[tuple[nn.Conv2d, BatchNorm]]:
        return [*self.conv1.branches, *self.conv2.branches]


class CSPBlock(nn.Module):
    """Fuses two concatenated levels (RT-DETR, figure 4): one branch of RepVGG blocks, one without.

    Args:
        width: C of each level, and of the result.
        hidden_dim: width of the branches.
        norm: see :class:`HybridEncoderArguments`.
    """

    def __init__(self, width: int, hidden_dim: int, norm: str):
        super().__init__()
        self.conv1 = ConvNorm(2 * width, hidden_dim, 1, norm)
        self.conv2 = ConvNorm(2 * width, hidden_dim, 1, norm)
        self.bottlenecks = nn.Sequential(*(RepVGGBlock(hidden_dim, norm) for _ in range(BLOCKS)))
        # Back to C channels, where the branches are narrower or wider.
        self.conv3 = nn.Identity() if hidden_dim == width else ConvNorm(hidden_dim, width, 1, norm)

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, 2·C, H, W)`` to ``(B, C, H, W)``."""
        return self.conv3(self.bottlenecks(self.conv1(maps)) + self.conv2(maps))


class SelfAttentionBlock(nn.Module):
    """A layer of DETR's encoder, with norms after the sums, and GELU."""

    def __init__(self, d_model: int, n_heads: int, d_ffn: int):
        super().__init__()
        self.self_attn = Attention(d_model, n_heads)
        self.linear1 = nn.Linear(d_model, d_ffn)
        self.linear2 = nn.Linear(d_ffn, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """``tokens`` ``(B, N, C)`` and their positions ``(N, C)``; returns ``(B, N, C)``."""
        # Positions tell queries and keys where they are; values carry none.
        placed = tokens + position
        tokens = self.norm1(tokens + self.self_attn(placed, placed, tokens))
        return self.norm2(tokens + self.linear2(F.gelu(self.linear1(tokens))))


class IntraScaleInteraction(nn.Module):
    """Attention-based Intra-scale Feature Interaction (AIFI, §4.2): within one level's tokens."""

    def __init__(self, arguments: HybridEncoderArguments):
        super().__init__()
        self.layers = nn.ModuleList(
            SelfAttentionBlock(arguments.d_model, arguments.n_heads, arguments.d_ffn)
            for _ in range(arguments.num_layers)
        )

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        channels, height, width = feature.shape[1:]
        # Q = K = V = Flatten(S5), row by row (equation 1).
        tokens = to_tokens(feature)
        position = cell_encoding(height, width, channels, device=feature.device)
        for layer in self.layers:
            tokens = layer(tokens, position)
        # F5 = Reshape(AIFI(Q, K, V)).
        return to_map(tokens, (height, width))


class HybridEncoder(nn.Module):
    """RT-DETR's efficient hybrid encoder (§4.2): AIFI, then fusion of the levels (CCFF).

    Args:
        levels: names of the levels, coarse to fine.
        arguments: widths.

    Raises:
        ValueError: a level of ``arguments.attended`` is not among the levels.
    """

    def __init__(self, levels: Sequence[str], arguments: HybridEncoderArguments):
        super().__init__()
        unknown = [name for name in arguments.attended if name not in levels]
        if unknown:
            raise ValueError(
                f"attended is {list(arguments.attended)}: expected levels of {list(levels)}"
            )
        self.attended = [levels.index(name) for name in arguments.attended]
        width, norm = arguments.d_model, arguments.norm
        steps = range(len(levels) - 1)  # from a level to the next
        self.encoder = nn.ModuleList(IntraScaleInteraction(arguments) for _ in self.attended)
        # Numbered in the order of the data: from the coarsest level down, …
        self.lateral_convs = nn.ModuleList(ConvNorm(width, width, 1, norm) for _ in steps)
        self.fpn_blocks = nn.ModuleList(CSPBlock(width, arguments.hidden_dim, norm) for _ in steps)
        # … and from the finest one up.
        self.downsample_convs = nn.ModuleList(
            ConvNorm(width, width, 3, norm, stride=2) for _ in steps
        )
        self.pan_blocks = nn.ModuleList(CSPBlock(width, arguments.hidden_dim, norm) for _ in steps)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``maps``: ``(B, C, H, W)`` of each level, coarse to fine; returns the same shapes."""
        levels = list(maps)
        # Attention where features are semantic and tokens few: the coarsest level.
        for index, interaction in zip(self.attended, self.encoder, strict=True):
            levels[index] = interaction(levels[index])
        # Top-down (FPN): each level takes in the coarser one, which is replaced by its lateral
        # projection for the way back, too.
        for index, (lateral, fuse) in enumerate(
            zip(self.lateral_convs, self.fpn_blocks, strict=True)
        ):
            levels[index] = lateral(levels[index])
            finer = levels[index + 1]
            # To the finer map's size, which is odd where 32 does not divide the image's.
            above = F.interpolate(levels[index], size=finer.shape[-2:], mode="nearest")
            levels[index + 1] = fuse(torch.cat((above, finer), dim=1))
        # Bottom-up (PAN): each level takes in the finer one, of half its size, rounded up.
        coarser = range(len(levels) - 2, -1, -1)
        for index, downsample, fuse in zip(
            coarser, self.downsample_convs, self.pan_blocks, strict=True
        ):
            below = downsample(levels[index + 1])
            levels[index] = fuse(torch.cat((below, levels[index]), dim=1))
        return levels


@cached_table
def cell_encoding(
    height: int, width: int, channels: int, *, device: torch.device | str = "cpu"
) -> Tensor:
    """RT-DETR's sine encoding of every cell of a map, row by row.

    Coordinates are cell numbers from 0. A quarter of the channels, whose number is a multiple of 4,
    is the sine of y, one its cosine, one the sine and one the cosine of x; frequencies fall
    geometrically from 1 to almost 1 / :data:`TEMPERATURE`. (RT-DETR's first release exchanges rows
    and columns on maps that are not square.)

    Returns:
        ``(height * width, channels)`` float32, values in [-1, 1].
    """
    # ω_k = 1 / T^(k / (C / 4)).
    quarter = channels // 4
    frequency = TEMPERATURE ** -(torch.arange(quarter, device=device) / quarter)

    def encode(length: int) -> Tensor:
        angles = torch.arange(length, device=device)[:, None] * frequency
        return torch.cat((angles.sin(), angles.cos()), dim=1)

    # [sin y, cos y, sin x, cos x], (H, W, C / 2) each axis.
    rows = encode(height)[:, None].expand(height, width, 2 * quarter)
    columns = encode(width)[None].expand(height, width, 2 * quarter)
    return torch.cat((rows, columns), dim=2).reshape(height * width, channels)


@SEM_SEG_HEADS_REGISTRY.register()
class RTDETRPixelDecoder(PixelDecoder):
    """RT-M2F's pixel decoder: :class:`HybridEncoder`, then Mask2Former's step to stride 4.

    Args:
        input_shape: channels and stride of the backbone's levels.
        encoder: widths of the hybrid encoder.
        mask_output_ops: see :class:`~proscale.modeling.pixel_decoders.base.PixelDecoder`.
        pyramid: levels and widths; its C is the encoder's.
    """

    hybrid_encoder: HybridEncoder

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        encoder: HybridEncoderArguments,
        mask_output_ops: str,
        pyramid: PyramidArguments,
    ):
        # Coarse to fine, as the encoder takes them.
        names = coarse_to_fine(input_shape, pyramid.transformer_in_features)
        super().__init__(
            input_shape,
            replace(pyramid, conv_dim=encoder.d_model),
            encoder=HybridEncoder(names, encoder),
            projection=lambda channels, width: LevelProjection(channels, width, encoder.norm),
            mask_output_ops=mask_output_ops,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        return {
            "input_shape": input_shape,
            "encoder": HybridEncoderArguments.from_config(cfg),
            "mask_output_ops": cfg.MODEL.PROSCALE.MASK_OUTPUT_OPS,
            "pyramid": PyramidArguments.from_config(cfg),
        }

    def add_encoder(self, encoder: nn.Module, conv_dim: int) -> None:
        """See :class:`~proscale.modeling.pixel_decoders.base.PixelDecoder`."""
        assert isinstance(encoder, HybridEncoder)
        self.hybrid_encoder = encoder

    def encode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``maps``: ``(B, C, H, W)`` of each level, coarse to fine; returns the same shapes."""
        return self.hybrid_encoder(maps)
