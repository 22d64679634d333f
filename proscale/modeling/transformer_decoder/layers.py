"""Layers of the transformer decoder: attention, feed-forward network, MLP.

Each block adds its branch to its input, with the norm after the sum (as published) or before the
branch (``pre_norm``).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention (Attention Is All You Need, §3.2.2) with one mask for all heads.

    Parameters have the names of those of ``torch.nn.MultiheadAttention``.

    Args:
        d_model: width of queries, keys and values.
        n_heads: heads; must divide ``d_model``.
    """

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model is {d_model}: expected multiples of n_heads, {n_heads}")
        self.n_heads = n_heads
        # Projections of queries, keys and values, one below the other: (3·C, C).
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: ``(B, Q, C)``.
            key, value: ``(B, N, C)``.
            mask: ``(B, Q, N)`` bool, True where a query may look; None lets it look everywhere.

        Returns:
            ``(B, Q, C)``.
        """
        # Projections of queries, keys and values: (B, N, C) to (B, heads, N, C / heads).
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(tokens, weight, bias).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        # softmax(mask + Q Kᵀ / √d) V, the mask being the same for all heads: (B, 1, Q, N).
        if mask is not None:
            mask = mask[:, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        # Heads side by side, (B, Q, C), then the output projection.
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class SelfAttentionLayer(nn.Module):
    """Self-attention of the queries; positions are added to queries and keys, not to values."""

    def __init__(self, d_model: int, n_heads: int, *, pre_norm: bool):
        super().__init__()
        self.self_attn = Attention(d_model, n_heads)
        self.norm = nn.LayerNorm(d_model)
        self.pre_norm = pre_norm

    def forward(self, queries: Tensor, query_position: Tensor) -> Tensor:
        """``queries`` and ``query_position`` ``(B, Q, C)``; returns ``(B, Q, C)``."""
        content = self.norm(queries) if self.pre_norm else queries
        # q = k = x + position, v = x: positions are part of every layer's input (DETR, §A.3).
        placed = content + query_position
        queries = queries + self.self_attn(placed, placed, content)
        return queries if self.pre_norm else self.norm(queries)


class CrossAttentionLayer(nn.Module):
    """Masked attention of the queries to the tokens of one level (Mask2Former, §3.2.1)."""

    def __init__(self, d_model: int, n_heads: int, *, pre_norm: bool):
        super().__init__()
        self.multihead_attn = Attention(d_model, n_heads)
        self.norm = nn.LayerNorm(d_model)
        self.pre_norm = pre_norm

    def forward(
        self,
        queries: Tensor,
        query_position: Tensor,
        tokens: Tensor,
        token_position: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Attend.

        Args:
            queries, query_position: ``(B, Q, C)``.
            tokens: ``(B, N, C)``; token_position: ``(N, C)``, added to the keys.
            mask: ``(B, Q, N)`` bool, True where a query may look.

        Returns:
            ``(B, Q, C)``.
        """
        content = self.norm(queries) if self.pre_norm else queries
        # X_l = softmax(M_(l-1) + Q_l K_lᵀ) V_l + X_(l-1) (Mask2Former, equation 2).
        queries = queries + self.multihead_attn(
            content + query_position, tokens + token_position, tokens, mask
        )
        return queries if self.pre_norm else self.norm(queries)


class FeedForwardLayer(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, d_model: int, d_ffn: int, *, pre_norm: bool):
        super().__init__()
        self.linear1 = nn.Linear(d_model, d_ffn)
        self.linear2 = nn.Linear(d_ffn, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.pre_norm = pre_norm
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, queries: Tensor) -> Tensor:
        """``(B, Q, C)`` to the same shape."""
        content = self.norm(queries) if self.pre_norm else queries
        # FFN(x) = W_2 relu(W_1 x), on a residual branch.
        queries = queries + self.linear2(self.linear1(content).relu())
        return queries if self.pre_norm else self.norm(queries)


class MLP(nn.Module):
    """Linear layers with ReLUs between them.

    Args:
        widths: of the input, of every hidden layer, and of the output.
    """

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """``(…, widths[0])`` to ``(…, widths[-1])``."""
        # No activation after the last layer.
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)
