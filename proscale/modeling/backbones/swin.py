"""Swin Transformer (Liu et al., ICCV 2021, §3) as a Detectron2 backbone of any input size.

Attention runs inside square windows, shifted by half a window in every other block. Parameter names
are those of the published ImageNet and Mask2Former weights.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.init import trunc_normal_
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth


class WindowAttention(nn.Module):
    """Self-attention inside windows with a learned bias for every relative position (§3.2).

    Args:
        dim: width; a multiple of ``num_heads``.
        window: side of the windows, tokens.
        num_heads: heads.
        qkv_bias: biases of queries, keys and values.
        qk_scale: factor of the products; ``head_dim ** -0.5`` when None.
        attn_drop, proj_drop: dropout of the attention and of the output.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        window: int,
        num_heads: int,
        *,
        qkv_bias: bool,
        qk_scale: float | None,
        attn_drop: float,
        proj_drop: float,
    ):
        super().__init__()
        self.num_heads, self.scale, self.attn_drop = num_heads, qk_scale, attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window - 1) ** 2, num_heads)
        )
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``x`` ``(B·W, T, dim)``, an image's windows one after another, T = window², to the same
        shape; ``mask`` ``(W, T, T)`` is added to the products."""
        windows, tokens, dim = x.shape
        # (B·W, T, 3·dim) to three of (B·W, heads, T, dim / heads)
        qkv = self.qkv(x).view(windows, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        # Equation 4: softmax(Q Kᵀ / √d + B) V. B (heads, T, T) is read from a table that has a row
        # for each of the (2·window - 1)² relative positions.
        index = self.relative_position_index.flatten()
        bias = self.relative_position_bias_table[index].view(tokens, tokens, -1).permute(2, 0, 1)
        if mask is not None:
            # Shifted windows keep apart what the shift brought together.
            bias = (mask[:, None] + bias).repeat(windows // mask.shape[0], 1, 1, 1)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias.to(query.dtype),
            dropout_p=self.attn_drop if self.training else 0.0,
            scale=self.scale,
        )
        return self.proj_drop(self.proj(attended.transpose(1, 2).reshape(windows, tokens, dim)))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int, drop: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, dim)`` to the same shape."""
        # Dropout after both layers.
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class SwinBlock(nn.Module):
    """Window attention and an MLP, both pre-norm; ``shift`` tokens of cyclic shift."""

    def __init__(
        self, dim: int, window: int, *, shift: int, attn: WindowAttention, mlp: Mlp, rate: float
    ):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        # One draw for each sample; scaled, the branch keeps its expectation (Huang et al.).
        self.drop_path = StochasticDepth(rate, "row")
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x`` ``(B, H, W, dim)``; ``mask`` as :func:`shifted_window_mask` makes it for the
        padded size, used by shifted blocks only. Returns the shape of ``x``."""
        _, height, width, _ = x.shape
        # W-MSA, or SW-MSA where tokens are shifted (equation 3), inside windows of the padded map.
        tokens = self.norm1(x)
        # To whole windows, on the right and below.
        right, below = (whole_windows(side, self.window) - side for side in (width, height))
        tokens = F.pad(tokens, (0, 0, 0, right, 0, below))
        padded = tokens.shape
        # The cyclic shift by half a window lets neighbouring windows exchange information.
        if self.shift:
            tokens = tokens.roll((-self.shift, -self.shift), (1, 2))
        tokens = self.attn(to_windows(tokens, self.window), mask if self.shift else None)
        # Windows back to the map, shift and padding undone.
        tokens = from_windows(tokens, self.window, padded)
        if self.shift:
            tokens = tokens.roll((self.shift, self.shift), (1, 2))
        x = x + self.drop_path(tokens[:, :height, :width])
        # MLP, on a residual branch as well.
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Halve the resolution: 2x2 neighbours side by side, norm, then 4·dim to 2·dim (§3.1)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` to ``(B, ⌈H/2⌉, ⌈W/2⌉, 2·dim)``."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # 2x2 neighbours side by side, (B, H/2, W/2, 4·dim). Down the columns first, as published
        # weights expect.
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class SwinStage(nn.Module):
    """Blocks of one resolution, and the merging that leads to the next unless it is the last."""

    def __init__(self, blocks: Sequence[SwinBlock], downsample: PatchMerging | None, *, ckpt: bool):
        super().__init__()
        self.window = blocks[0].window
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.use_checkpoint = ckpt

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, H, W, dim)`` to the same after the blocks, and the next stage's input."""
        # One mask for all shifted blocks of this resolution.
        mask = shifted_window_mask(x.shape[1], x.shape[2], self.window, x)
        for block in self.blocks:
            # Activation checkpointing: activations are computed again in the backward pass.
            if self.use_checkpoint and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Linear embedding of square patches (§3.1)."""

    def __init__(self, patch_size: int, in_channels: int, dim: int, *, norm: bool):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, ⌈H/patch⌉, ⌈W/patch⌉, dim)``."""
        height, width = images.shape[-2:]
        # To whole patches, on the right and below.
        images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(Backbone):
    """Swin Transformer under the name and keys of Mask2Former's configuration files.

    Args:
        in_channels: of the images.
        pretrain_img_size: side of the images that ``ape`` was learned on, pixels.
        patch_size: side of a patch, pixels; the stride of ``res2``.
        embed_dim: width of the first stage, doubled by each further one.
        depths, num_heads: blocks and heads of each stage.
        window_size: side of the windows, tokens.
        mlp_ratio: hidden width of the perceptrons over the stage's.
        qkv_bias, qk_scale, attn_drop_rate: see :class:`WindowAttention`.
        drop_rate: dropout of embeddings, attention outputs and perceptrons.
        drop_path_rate: rate of the last block; rises linearly from zero.
        ape: learned absolute position embedding, resized to the input.
        patch_norm: norm behind the patch embedding.
        out_features: of ``res2``, ``res3``, …
        use_checkpoint: recompute blocks in the backward pass.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int = 3,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        ape: bool = False,
        patch_norm: bool = True,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        use_checkpoint: bool = False,
    ):
        super().__init__()
        # Each stage halves the resolution and doubles the width (§3.1).
        widths = [embed_dim * 2**stage for stage in range(len(depths))]
        if len(num_heads) != len(depths) or any(
            width % heads for width, heads in zip(widths, num_heads, strict=False)
        ):
            raise ValueError(
                f"num_heads is {list(num_heads)}: expected one number for each of the stages of "
                f"depths {list(depths)}, dividing their widths {widths}"
            )
        names = [f"res{stage + 2}" for stage in range(len(depths))]
        if not out_features or not set(out_features) <= set(names):
            raise ValueError(
                f"out_features is {list(out_features)}: expected one or more of {names}"
            )
        self._out_features = [name for name in names if name in out_features]
        self._out_feature_channels = dict(zip(names, widths, strict=True))
        self._out_feature_strides = {
            name: patch_size * 2**stage for stage, name in enumerate(names)
        }

        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim, norm=patch_norm)
        # Swin has relative positions in its attention; absolute ones are an option.
        self.absolute_pos_embed = None
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, embed_dim, side, side))
            trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)

        # Stochastic depth: rates rise linearly with the block's number.
        last = max(sum(depths) - 1, 1)
        drop_paths = [drop_path_rate * block / last for block in range(sum(depths))]
        bounds = pairwise(accumulate(depths, initial=0))
        self.layers = nn.ModuleList()
        for stage, (start, end) in enumerate(bounds):
            dim = widths[stage]
            blocks = [
                SwinBlock(
                    dim,
                    window_size,
                    # Regular and shifted windows in alternation.
                    shift=window_size // 2 if block % 2 else 0,
                    attn=WindowAttention(
                        dim,
                        window_size,
                        num_heads[stage],
                        qkv_bias=qkv_bias,
                        qk_scale=qk_scale,
                        attn_drop=attn_drop_rate,
                        proj_drop=drop_rate,
                    ),
                    mlp=Mlp(dim, int(dim * mlp_ratio), drop_rate),
                    rate=rate,
                )
                for block, rate in enumerate(drop_paths[start:end])
            ]
            merging = PatchMerging(dim) if stage + 1 < len(depths) else None
            self.layers.append(SwinStage(blocks, merging, ckpt=use_checkpoint))
        # A norm for each feature that is given out, numbered as in the published weights.
        for stage, name in enumerate(names):
            if name in self._out_features:
                self.add_module(f"norm{stage}", nn.LayerNorm(widths[stage]))
        self.apply(_initialise)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        # The keys of MODEL.SWIN are the names of the arguments.
        arguments = {key.lower(): value for key, value in cfg.MODEL.SWIN.items()}
        return {"in_channels": input_shape.channels, **arguments}

    @property
    def size_divisibility(self) -> int:
        """Images are best padded to a multiple of the coarsest stride."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``(B, in_channels, H, W)`` to ``(B, channels, ⌈H/stride⌉, ⌈W/stride⌉)`` by name."""
        # (B, in_channels, H, W) to (B, H/4, W/4, C), channels last all the way.
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            # Learned on images of another size.
            position = F.interpolate(
                self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic", align_corners=False
            )
            x = x + position.permute(0, 2, 3, 1)
        # Dropout of the embeddings.
        x = self.pos_drop(x)
        features = {}
        for stage, layer in enumerate(self.layers):
            # The stage's blocks; x is merged to half the resolution and twice the width.
            feature, x = layer(x)
            name = f"res{stage + 2}"
            if name in self._out_features:
                # (B, H, W, C) to (B, C, H, W).
                norm = self.get_submodule(f"norm{stage}")
                features[name] = norm(feature).permute(0, 3, 1, 2)
        return features


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for every pair of a window's tokens: ``(T, T)`` int64, T = window²."""
    # Differences of rows and of columns, moved to 0 … 2·window - 2.
    cells = torch.arange(window)
    coordinates = torch.stack(torch.meshgrid(cells, cells, indexing="ij")).flatten(1)
    rows, columns = coordinates[:, :, None] - coordinates[:, None] + window - 1
    # One number for each pair of differences.
    return rows * (2 * window - 1) + columns


def shifted_window_mask(height: int, width: int, window: int, like: Tensor) -> Tensor:
    """Mask that keeps tokens apart which the cyclic shift brought into one window (§3.2).

    ``(W, T, T)``, for the map of (height, width) tokens padded to whole windows: 0 where a token
    may look, -100 elsewhere; device and dtype as ``like``.
    """

    def regions(length: int) -> Tensor:
        """0 before the last window, 1 in its part that belongs to it, 2 in what wrapped round."""
        length = whole_windows(length, window)
        cells = torch.arange(length, device=like.device)
        return (cells >= length - window).long() + (cells >= length - window // 2).long()

    # Tokens of one window belong together if they come from the same of 3x3 regions.
    region = regions(height)[:, None] * 3 + regions(width)
    region = to_windows(region[None, :, :, None], window).squeeze(-1)
    # (W, T, T): whether two tokens of a window come from different regions.
    apart = region[:, None] != region[:, :, None]
    return torch.zeros_like(apart, dtype=like.dtype).masked_fill_(apart, -100.0)


def whole_windows(length: int, window: int) -> int:
    """``length`` padded to a multiple of ``window``."""
    # Not by a remainder, from which an exporter cannot tell that the result is such a multiple; and
    # of positive numbers only, because ONNX divides towards zero.
    return (length + window - 1) // window * window


def to_windows(x: Tensor, window: int) -> Tensor:
    """``(B, H, W, C)``, whole windows, to ``(B·HW/T, T, C)``, T = window²."""
    batch, height, width, channels = x.shape
    # (B, rows of windows, T^½, columns of windows, T^½, C)
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(x: Tensor, window: int, shape: Sequence[int]) -> Tensor:
    """Inverse of :func:`to_windows`; ``shape`` is (B, H, W, C)."""
    batch, height, width, channels = shape
    x = x.view(batch, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
