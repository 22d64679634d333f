"""Mix Transformer (SegFormer, Xie et al., NeurIPS 2021, §3.1) as a Detectron2 backbone.

Tokens stay in rows, ``(B, H·W, C)``, all the way; maps for convolutions are channels-last views of
them. Attention may merge tokens (SegFormer++), with the same weights as without.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from math import sqrt
from types import MappingProxyType

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.init import normal_, trunc_normal_, zeros_
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from proscale.modeling.backbones.token_merging import SharedMatching
from proscale.modeling.backbones.token_merging_config import (
    STAGES,
    StageMerging,
    TokenMerging,
    parse_token_merging,
)
from proscale.ops.fused import map_rows, to_map, to_tokens
from proscale.utils.types import Size

NAMES = ("res2", "res3", "res4", "res5")
#: Width of a head and blocks of each stage, by variant (SegFormer, table 6).
VARIANTS = MappingProxyType(
    {
        "b0": (32, (2, 2, 2, 2)),
        "b1": (64, (2, 2, 2, 2)),
        "b2": (64, (3, 4, 6, 3)),
        "b3": (64, (3, 4, 18, 3)),
        "b4": (64, (3, 8, 27, 3)),
        "b5": (64, (3, 6, 40, 3)),
    }
)
# Heads of the stages; keys' and values' reduction to the side; hidden width of the Mix-FFN.
NUM_HEADS, SR_RATIOS, MLP_RATIO = (1, 2, 5, 8), (8, 4, 2, 1), 4.0  # of all variants


class EfficientAttention(nn.Module):
    """Self-attention of ``num_heads`` heads, which divide the width ``dim``.

    Windows of ``sr_ratio`` tokens to the side become one key and value each.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, *, norm_eps: float):
        super().__init__()
        self.num_heads, self.sr_ratio = num_heads, sr_ratio
        # Keys and values share a layer, as in NVIDIA's weights.
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(
        self,
        tokens: Tensor,
        size: Size,
        match_query: SharedMatching,
        match_key_value: SharedMatching,
    ) -> Tensor:
        """``(B, H·W, dim)``, a map of ``size`` (H, W), to the same shape; the planners say how
        queries and, after their reduction, keys and values are merged."""
        # Keys and values from the reduced map: N·M products instead of N², M = N / sr_ratio².
        key, value = self.keys_and_values(tokens, size, match_key_value)
        # Queries merged before attention, copied back to full length after it (SegFormer++).
        matching = match_query(tokens, size)
        return matching.unmerge(self.attend(matching.merge(tokens), key, value))

    def attend(self, tokens: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Results for the queries ``tokens``, ``(B, N, dim)``, in the same shape."""
        # (B, N, dim) to (B, num_heads, N, dim / num_heads)
        query = self.q(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        # softmax(Q Kᵀ / √d) V without the matrix of N·M products in memory.
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))

    def keys_and_values(
        self, tokens: Tensor, size: Size, match: SharedMatching
    ) -> tuple[Tensor, Tensor]:
        """``(B, num_heads, M, dim / num_heads)`` each, reduced and then merged."""
        # Reduce, then merge what is left (SegFormer++), then project.
        reduced, reduced_size = self.reduce(tokens, size)
        reduced = match(reduced, reduced_size).merge(reduced)
        key, value = self.kv(reduced).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        return key.transpose(1, 2), value.transpose(1, 2)

    def reduce(self, tokens: Tensor, size: Size) -> tuple[Tensor, Size]:
        """The tokens that become keys and values, and the size of their map."""
        if self.sr_ratio == 1:
            return tokens, size
        # Efficient self-attention: a strided convolution makes one token of each window (§3.1).
        maps = to_map(tokens, size)
        # Tokens behind the last whole window are left out; a map smaller than a window is padded.
        below, right = (max(self.sr_ratio - side, 0) for side in size)
        if below or right:
            maps = F.pad(maps, (0, right, 0, below))
        maps = self.sr(maps)
        return self.norm(to_tokens(maps)), (maps.shape[2], maps.shape[3])


class MixFeedForward(nn.Module):
    """Mix-FFN: linear, 3x3 depth-wise convolution, GELU, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """``(B, H·W, dim)``, a map of ``size`` (H, W), to the same shape."""
        # The hidden activations are the model's largest: rows by rows, with the neighbours that
        # the convolution looks at.
        return map_rows(self._rows, tokens, size, hidden=self.fc1.out_features, halo=1)

    def _rows(self, tokens: Tensor, size: Size, rows: slice) -> Tensor:
        # Equation 3: MLP(GELU(Conv3x3(MLP(x)))). There is no position encoding: the convolution's
        # zero padding tells the model about position.
        hidden = self.dwconv(to_map(self.fc1(tokens), size))
        return self.fc2(F.gelu(to_tokens(hidden[:, :, rows])))


class MixBlock(nn.Module):
    """Attention and Mix-FFN of hidden width ``mlp_ratio * dim``, both pre-norm, each on a residual
    branch that is dropped at the rate ``drop_path``."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        sr_ratio: int,
        *,
        mlp_ratio: float,
        drop_path: float,
        norm_eps: float,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = EfficientAttention(dim, num_heads, sr_ratio, norm_eps=norm_eps)
        self.drop_path = StochasticDepth(drop_path, "row")
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MixFeedForward(dim, int(dim * mlp_ratio))

    def forward(
        self, x: Tensor, size: Size, match_query: SharedMatching, match_key_value: SharedMatching
    ) -> Tensor:
        """Arguments as for :class:`EfficientAttention`; returns the shape of ``x``."""
        # Both branches are pre-norm and residual.
        x = x + self.drop_path(self.attn(self.norm1(x), size, match_query, match_key_value))
        return x + self.drop_path(self.mlp(self.norm2(x), size))


class OverlapPatchEmbed(nn.Module):
    """Embedding of overlapping patches: a strided convolution and a norm."""

    def __init__(
        self, in_channels: int, dim: int, *, kernel_size: int, stride: int, norm_eps: float
    ):
        super().__init__()
        self.proj = nn.Conv2d(
            in_channels, dim, kernel_size, stride=stride, padding=kernel_size // 2
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, maps: Tensor) -> tuple[Tensor, Size]:
        """``(B, in_channels, H, W)`` to tokens ``(B, h·w, dim)``, h = ⌈H/stride⌉, and (h, w)."""
        # Patches overlap, because the kernel is larger than the stride (§3.1).
        maps = self.proj(maps)
        return self.norm(to_tokens(maps)), (maps.shape[2], maps.shape[3])


class MixStage(nn.Module):
    """Patch embedding, blocks and norm of one resolution."""

    def __init__(
        self,
        patch_embed: OverlapPatchEmbed,
        blocks: Sequence[MixBlock],
        norm: nn.LayerNorm,
        *,
        use_checkpoint: bool,
    ):
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.use_checkpoint = use_checkpoint

    def forward(self, maps: Tensor, merging: StageMerging, matching_reuse: int) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, dim, ⌈H/stride⌉, ⌈W/stride⌉)``, channels last."""
        x, size = self.patch_embed(maps)  # tokens (B, h·w, dim)
        # Blocks that share their matchings of queries and of keys and values.
        for first in range(0, len(self.blocks), matching_reuse):
            blocks = list(self.blocks)[first : first + matching_reuse]
            # Activation checkpointing: activations are computed again in the backward pass.
            if self.use_checkpoint and self.training:
                x = checkpoint(_run_blocks, blocks, x, size, merging, use_reentrant=False)
            else:
                x = _run_blocks(blocks, x, size, merging)
        # The stage's output, a channels-last view: (B, dim, h, w).
        return to_map(self.norm(x), size)


def _run_blocks(
    blocks: Iterable[nn.Module], x: Tensor, size: Size, merging: StageMerging
) -> Tensor:
    """Blocks of a stage with one matching of queries, and one of keys and values."""
    match_query, match_key_value = SharedMatching(merging.query), SharedMatching(merging.key_value)
    # Attention and Mix-FFN; the map's size stays.
    for block in blocks:
        x = block(x, size, match_query, match_key_value)
    return x


@BACKBONE_REGISTRY.register()
class MixVisionTransformer(Backbone):
    """MiT b0 to b5, or one of any width and depth, with outputs ``res2`` to ``res5``.

    Args:
        in_channels: of the images.
        embed_dim: width of a head; a stage's is ``embed_dim`` times its heads.
        depths, num_heads: blocks and heads of the four stages.
        sr_ratios: reduction of keys and values in each stage, to the side.
        mlp_ratio: hidden width of the Mix-FFN over the stage's.
        drop_path_rate: rate of the last block; rises linearly from zero.
        norm_eps: of all norms.
        downsample: see only every second row and column of the images. Feature strides are then
            8 to 64, which is what :meth:`output_shape` says.
        token_merging: see :func:`.token_merging_config.parse_token_merging`.
        matching_reuse: successive blocks of a stage that share the matching of the first.
        use_checkpoint: recompute blocks in the backward pass.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int = 3,
        embed_dim: int = 32,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = NUM_HEADS,
        sr_ratios: Sequence[int] = SR_RATIOS,
        mlp_ratio: float = MLP_RATIO,
        drop_path_rate: float = 0.1,
        norm_eps: float = 1e-6,
        downsample: bool = False,
        token_merging: TokenMerging = None,
        matching_reuse: int = 1,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        stages = {"depths": depths, "num_heads": num_heads, "sr_ratios": sr_ratios}
        for name, values in stages.items():
            if len(values) != STAGES or min(values) < 1:
                raise ValueError(
                    f"{name} is {list(values)}: expected {STAGES} whole numbers from 1, one for "
                    "each stage"
                )
        if matching_reuse < 1:
            raise ValueError(f"matching_reuse is {matching_reuse}: expected whole numbers from 1")
        self.downsample = downsample
        self.matching_reuse = matching_reuse
        self.set_token_merging(token_merging)

        # Stages of width C·heads and stride 4, 8, 16, 32 (table 6 of the paper).
        widths = [embed_dim * heads for heads in num_heads]
        strides = [(8 if downsample else 4) * 2**stage for stage in range(STAGES)]
        self._out_features = list(NAMES)
        self._out_feature_channels = dict(zip(NAMES, widths, strict=True))
        self._out_feature_strides = dict(zip(NAMES, strides, strict=True))

        # Stochastic depth: rates rise linearly with the block's number.
        last = max(sum(depths) - 1, 1)
        drop_paths = [drop_path_rate * block / last for block in range(sum(depths))]
        bounds = pairwise(accumulate(depths, initial=0))
        self.stages = nn.ModuleList()
        for stage, (start, end) in enumerate(bounds):
            # Kernel 7 and stride 4 for the image, kernel 3 and stride 2 between stages.
            patch_embed = OverlapPatchEmbed(
                widths[stage - 1] if stage else in_channels,
                widths[stage],
                kernel_size=3 if stage else 7,
                stride=2 if stage else 4,
                norm_eps=norm_eps,
            )
            blocks = [
                MixBlock(
                    widths[stage],
                    num_heads[stage],
                    sr_ratios[stage],
                    mlp_ratio=mlp_ratio,
                    drop_path=rate,
                    norm_eps=norm_eps,
                )
                for rate in drop_paths[start:end]
            ]
            # Every stage ends with a norm.
            norm = nn.LayerNorm(widths[stage], eps=norm_eps)
            self.stages.append(MixStage(patch_embed, blocks, norm, use_checkpoint=use_checkpoint))
        self.apply(_initialise)
        # Convolutions answer in the layout of their weights: also for images that are not so.
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.MIT
        # A variant by name, or any other size by its numbers.
        if node.VARIANT:
            embed_dim, depths = VARIANTS[node.VARIANT]
            size = {"embed_dim": embed_dim, "depths": depths}
        else:
            size = {
                "embed_dim": node.EMBED_DIM,
                "depths": node.DEPTHS,
                "num_heads": node.NUM_HEADS,
                "sr_ratios": node.SR_RATIOS,
                "mlp_ratio": node.MLP_RATIO,
            }
        return {
            "in_channels": input_shape.channels,
            "drop_path_rate": node.DROP_PATH_RATE,
            "norm_eps": node.NORM_EPS,
            "downsample": node.DOWNSAMPLE,
            "token_merging": node.TOKEN_MERGING,
            "matching_reuse": node.MATCHING_REUSE,
            "use_checkpoint": node.USE_CHECKPOINT,
            **size,
        }

    @property
    def size_divisibility(self) -> int:
        """Images are padded to a multiple of it: the coarsest stride."""
        # Then they also fill all windows of the keys' and values' reduction.
        return self._out_feature_strides["res5"]

    def set_token_merging(self, token_merging: TokenMerging) -> None:
        """Change how tokens are merged from the next forward pass on; weights stay as they are.

        Takes and raises what :func:`.token_merging_config.parse_token_merging` does; the merging is
        then unchanged.
        """
        self.token_merging = parse_token_merging(token_merging)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``(B, in_channels, H, W)`` of any size to ``(B, channels, ⌈H/stride⌉, ⌈W/stride⌉)`` by
        name, in channels-last layout."""
        # SegFormer++'s comparison: half the image in place of fewer tokens.
        x = images[..., ::2, ::2] if self.downsample else images
        features = {}
        # Four stages of stride 4, 8, 16 and 32.
        for name, stage, merging in zip(NAMES, self.stages, self.token_merging, strict=True):
            x = features[name] = stage(x, merging, self.matching_reuse)
        return features


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        fan_out = height * width * module.out_channels // module.groups
        normal_(module.weight, std=sqrt(2 / fan_out))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        zeros_(module.bias)
