"""Multi-head attention: of the transformer decoder's queries, and within RT-DETR's encoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention (Attention Is All You Need, §3.2.2) with one mask for all heads.

    Parameters have the names of those of ``torch.nn.MultiheadAttention``.
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
        """``query`` ``(B, Q, C)`` attends ``key`` and ``value`` ``(B, N, C)``; returns its shape.

        ``mask`` ``(B, Q, N)`` is True where a query may look; None lets it look everywhere.
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
