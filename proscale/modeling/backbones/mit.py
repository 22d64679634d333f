"""Mix Transformer (SegFormer, Xie et al., NeurIPS 2021, §3.1) as a Detectron2 backbone.

Tokens stay in rows, ``(B, H·W, C)``, all the way; maps for convolutions are channels-last views of
them. Attention may merge tokens (SegFormer++), with the same weights as without.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import sqrt
from types import MappingProxyType

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn.init import normal_, trunc_normal_, zeros_

from proscale.modeling.backbones.mit_block import MixBlock
from proscale.modeling.backbones.token_merging import MergePlanner
from proscale.modeling.backbones.token_merging_config import (
    STAGES,
    StageMerging,
    TokenMerging,
    parse_token_merging,
)
from proscale.modeling.tokens import to_map, to_tokens

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

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """``(B, in_channels, H, W)`` to tokens ``(B, h·w, dim)``, h = ⌈H/stride⌉, and (h, w)."""
        # Patches overlap, because the kernel is larger than the stride (§3.1).
        maps = self.proj(maps)
        return self.norm(to_tokens(maps)), (maps.shape[2], maps.shape[3])


class MixStage(nn.Module):
    """Patch embedding, blocks and norm of one resolution."""

    def __init__(
        self, patch_embed: OverlapPatchEmbed, blocks: Sequence[MixBlock], norm: nn.LayerNorm
    ):
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, maps: Tensor, merging: StageMerging, matching_reuse: int) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, dim, ⌈H/stride⌉, ⌈W/stride⌉)``, channels last."""
        x, size = self.patch_embed(maps)  # tokens (B, h·w, dim)
        # Matchings of queries and of keys and values, shared by `matching_reuse` blocks.
        match_query = MergePlanner(merging.query, matching_reuse)
        match_key_value = MergePlanner(merging.key_value, matching_reuse)
        # Attention and Mix-FFN; the map's size stays.
        for block in self.blocks:
            x = block(x, size, match_query, match_key_value)
        # The stage's output, a channels-last view: (B, dim, h, w).
        return to_map(self.norm(x), size)


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
            self.stages.append(MixStage(patch_embed, blocks, norm))
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
            **size,
        }

    @property
    def size_divisibility(self) -> int:
        """Images are padded to a multiple of it: the coarsest stride."""
        # Then they also fill all windows of the keys' and values' reduction.
        return self._out_feature_strides["res5"]

    @property
    def token_merging(self) -> tuple[StageMerging, ...]:
        """The methods of the four stages."""
        return self._merging

    def set_token_merging(self, token_merging: TokenMerging) -> None:
        """Change how tokens are merged from the next forward pass on; weights stay as they are.

        Args:
            token_merging: see :func:`.token_merging_config.parse_token_merging`, e.g. ``bsm_fast``,
                or ``none`` to switch merging off.

        Raises:
            ValueError: as there; the merging is then unchanged.
        """
        self._merging = parse_token_merging(token_merging)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``(B, in_channels, H, W)`` of any size to ``(B, channels, ⌈H/stride⌉, ⌈W/stride⌉)`` by
        name, in channels-last layout."""
        # SegFormer++'s comparison: half the image in place of fewer tokens.
        x = images[..., ::2, ::2] if self.downsample else images
        features = {}
        # Four stages of stride 4, 8, 16 and 32.
        for name, stage, merging in zip(NAMES, self.stages, self._merging, strict=True):
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
