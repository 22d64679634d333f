"""Block of the Mix Transformer: efficient self-attention and Mix-FFN (SegFormer, §3.1)."""

from torch import Tensor, nn
from torch.nn import functional as F

from proscale.modeling.backbones.swin import DropPath
from proscale.modeling.backbones.token_merging import MergePlanner
from proscale.modeling.tokens import to_map, to_tokens
from proscale.ops.fused import map_rows
from proscale.utils.types import Size


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from a map reduced by ``sr_ratio`` to the side.

    Args:
        dim: width; a multiple of ``num_heads``.
        num_heads: heads.
        sr_ratio: side of the windows, tokens, that become one key and value each.
        norm_eps: of the norm.
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
        self, tokens: Tensor, size: Size, match_query: MergePlanner, match_key_value: MergePlanner
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
        self, tokens: Tensor, size: Size, match: MergePlanner
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
    """Attention and Mix-FFN, both pre-norm, each on a residual branch.

    Args:
        dim, num_heads, sr_ratio: see :class:`EfficientAttention`.
        mlp_ratio: hidden width of the Mix-FFN over ``dim``.
        drop_path: rate of dropping a branch.
        norm_eps: of the norms.
    """

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
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MixFeedForward(dim, int(dim * mlp_ratio))

    def forward(
        self, x: Tensor, size: Size, match_query: MergePlanner, match_key_value: MergePlanner
    ) -> Tensor:
        """Arguments as for :class:`EfficientAttention`; returns the shape of ``x``."""
        # Both branches are pre-norm and residual.
        x = x + self.drop_path(self.attn(self.norm1(x), size, match_query, match_key_value))
        return x + self.drop_path(self.mlp(self.norm2(x), size))
