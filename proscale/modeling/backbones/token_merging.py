"""Token merging inside attention (SegFormer++, Kienzle et al., 2024, §III): averages for tokens.

A *method* looks at the tokens of a map and makes a *matching*: which tokens are averaged into one.
The matching then merges any sequence of that map and copies a merged one back to full length.
Bipartite soft matching (Bolya et al., Token Merging, ICLR 2023, §3; Bolya & Hoffman, Token Merging
for Fast Stable Diffusion, 2023, §4) goes by the tokens' likeness, pooling by their place alone.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from proscale.ops.fused import to_map, to_tokens
from proscale.utils.types import Size


class Matching(Protocol):
    """Which tokens of a map of N tokens become one of M."""

    def merge(self, tokens: Tensor) -> Tensor:
        """``(B, N, C)`` to ``(B, M, C)``, averages."""

    def unmerge(self, merged: Tensor) -> Tensor:
        """``(B, M, C)`` to ``(B, N, C)``, copies."""


class Method(Protocol):
    """A way of making matchings."""

    def match(self, tokens: Tensor, size: Size) -> Matching:
        """Match the tokens ``(B, H·W, C)``, row by row, of a map of ``size`` (H, W)."""


class Unmerged:
    """The matching, and the method, that leaves every token by itself."""

    def match(self, tokens: Tensor, size: Size) -> Matching:
        return self

    def merge(self, tokens: Tensor) -> Tensor:
        return tokens

    def unmerge(self, merged: Tensor) -> Tensor:
        return merged


@dataclass(frozen=True)
class BipartiteSoftMatching:
    """Average the most redundant tokens into the most similar of a grid of destinations.

    Attributes:
        ratio: fraction r of all tokens to merge away, in [0, 1): ⌊r·N⌋ tokens, at most all that are
            no destination.
        cell: (sy, sx), tokens; the top left token of every whole cell is a destination. A map
            without a whole cell stays as it is.
    """

    ratio: float
    cell: Size

    @torch.no_grad()
    def match(self, tokens: Tensor, size: Size) -> Matching:
        # Tokens are split into two sets: destinations, one for each whole cell, and sources.
        count = tokens.shape[1]  # N
        rows, columns = (side // step for side, step in zip(size, self.cell, strict=True))
        destinations = rows * columns
        merged_away = min(int(self.ratio * count), count - destinations)
        if destinations == 0 or merged_away == 0:
            return Unmerged()
        sources_left = count - destinations - merged_away

        def grid(of_tokens: Tensor) -> Tensor:
            """View of the destinations in ``(B, N, …)``: ``(B, rows, columns, …)``."""
            (sy, sx), maps = self.cell, of_tokens.unflatten(1, size)
            return maps[:, : rows * sy : sy, : columns * sx : sx]

        # Cosine similarity decides. Float32 also under autocast, whose 8 bits cannot tell
        # near-duplicates apart.
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.float()
            # The most similar destination of every token, and how similar: (B, N) each.
            # A source's own length scales all its similarities: normalising the maxima is enough.
            directions = F.normalize(grid(tokens).flatten(1, 2), dim=-1)
            similarity, owner = (tokens @ directions.mT).max(-1)
            similarity = similarity / tokens.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        # The r·N most similar sources are merged; the least similar are left. Destinations always
        # stay.
        grid(similarity).fill_(torch.inf)
        left = similarity.topk(sources_left, largest=False, sorted=False).indices
        # Order after merging: sources left, then destinations. `owner` says where a token goes.
        places = torch.arange(sources_left + destinations, device=tokens.device)
        owner = owner + sources_left
        owner.scatter_(1, left, places[:sources_left].expand_as(left))
        grid(owner).copy_(places[sources_left:].view(rows, columns))
        return SoftMatching(owner, sources_left + destinations)


class SoftMatching:
    """Tokens by the merged token that they belong to: sources left alone, then destinations.

    ``owner`` is ``(B, N)`` int64, in [0, ``length``), the number M of merged tokens.
    """

    def __init__(self, owner: Tensor, length: int):
        self._batch, self._length = owner.shape[0], length
        # Rows of the whole batch, so that one index moves a token with all its channels.
        first = torch.arange(self._batch, device=owner.device) * length
        self._rows = (owner + first[:, None]).flatten()

    def merge(self, tokens: Tensor) -> Tensor:
        # (B, N, C) to (B·M, C): the mean of each destination and its sources.
        tokens = tokens.flatten(0, 1)
        merged = tokens.new_zeros(self._batch * self._length, tokens.shape[1])
        index = self._rows[:, None].expand_as(tokens)
        merged = merged.scatter_reduce(0, index, tokens, "mean", include_self=False)
        return merged.unflatten(0, (self._batch, self._length))

    def unmerge(self, merged: Tensor) -> Tensor:
        # A token gets the value of the one that it was merged into.
        return merged.flatten(0, 1).index_select(0, self._rows).unflatten(0, (self._batch, -1))


@dataclass(frozen=True)
class AveragePooling:
    """Average over windows; un-merging is nearest interpolation."""

    window: Size  #: (rows, columns), tokens
    flat: bool = False  #: pool along the sequence of all tokens, row by row, instead of the map

    def match(self, tokens: Tensor, size: Size) -> Matching:
        # The whole sequence as a map of one row.
        if self.flat:
            size = (1, size[0] * size[1])
        return PooledMap(size, self.window)


class PooledMap:
    """The windows of a map of ``size`` (H, W)."""

    def __init__(self, size: Size, window: Size):
        self._size, self._window = size, window
        # ⌈side / step⌉. Of positive numbers only, because ONNX divides towards zero.
        self._pooled = tuple((s + step - 1) // step for s, step in zip(size, window, strict=True))

    def merge(self, tokens: Tensor) -> Tensor:
        # Windows at the far borders average what is there.
        return to_tokens(F.avg_pool2d(to_map(tokens, self._size), self._window, ceil_mode=True))

    def unmerge(self, merged: Tensor) -> Tensor:
        return to_tokens(F.interpolate(to_map(merged, self._pooled), size=self._size))


class SharedMatching:
    """The matching of the first of several successive blocks, which serves them all."""

    def __init__(self, method: Method):
        self._method = method
        self._matching: Matching | None = None

    def __call__(self, tokens: Tensor, size: Size) -> Matching:
        """The next block's matching; arguments as for :class:`Method`."""
        # Neighbouring blocks see similar tokens.
        if self._matching is None:
            self._matching = self._method.match(tokens, size)
        return self._matching
