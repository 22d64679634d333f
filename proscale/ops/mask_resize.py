"""Masks of queries at other sizes than they are predicted: a level's or a result's.

Masks are products of the queries' embeddings and the mask features, at a quarter of the input's
size. Resizing is linear and acts on rows and columns separately: products with band matrices from
the left and from the right, so that no mask is ever held at full size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proscale.ops.tracing import use_reference
from proscale.utils.types import Size

# Result columns computed by one product. More waste work on the zeros beside the band, fewer are
# many small calls.
COLUMNS = 128


class QueryMasks:
    """Masks of a decoder's queries, whose layers each predict them from a new embedding.

    ``features_of_losses`` are the features for losses whose gradients may take the way through the
    factors of the masks; None where every prediction is made by itself, or only the last one.

    Args:
        features: ``(B, C, H, W)`` mask features, or the map that ``projection`` makes them of.
        projection: a 1x1 convolution to C channels; None for none.
        sizes: (h, w) of the levels that are attended.
        every_layer: whether all layers' predictions are wanted, or the last one's alone.
    """

    def __init__(
        self,
        features: Tensor,
        projection: nn.Conv2d | None,
        sizes: Sequence[Size],
        *,
        every_layer: bool,
    ):
        # One prediction of few queries: the projection, E (W f + b) = (E W) f + E b, is folded into
        # their embeddings E, which are fewer than the cells of the features f.
        if projection is not None and (every_layer or use_reference()):
            features, projection = projection(features), None
        self.features, self.projection, self.sizes = features, projection, sizes
        self.one_by_one = every_layer and use_reference()
        self.features_of_losses = features if every_layer and not self.one_by_one else None
        self._predicted: list[Tensor] = []
        # The reference implementation makes every layer's masks at the features' size, returns them
        # as that layer's prediction and resizes them to attend within. Otherwise masks to attend
        # within are made at the level's size, and all predictions in one product: resizing is
        # linear, so that the features resized once give the resized masks of every layer.
        if not self.one_by_one:
            with torch.no_grad():
                self._resized = [_resize(features, size) for size in sizes]

    def attention_mask(self, embedding: Tensor, level: int) -> Tensor:
        """Where the queries with ``embedding`` ``(B, Q, C)`` may look on a level: ``(B, Q, h·w)``
        bool, see :func:`attention_mask`."""
        if self.one_by_one:
            self._predicted.append(self._masks(embedding, self.features))
            return attention_mask(self._predicted[-1], self.sizes[level])
        with torch.no_grad():
            masks = self._masks(embedding, self._resized[level])
        return attention_mask(masks, self.sizes[level])

    def predictions(self, embeddings: Sequence[Tensor]) -> list[Tensor]:
        """Logits ``(B, Q, H, W)`` of each of the last ``embeddings``, in order."""
        remaining = embeddings[len(self._predicted) :]
        masks = self._masks(torch.cat(list(remaining), dim=1), self.features)
        return [*self._predicted, *masks.chunk(len(remaining), dim=1)]

    def _masks(self, embedding: Tensor, features: Tensor) -> Tensor:
        """Products of ``(B, Q, C)`` with features of any size."""
        if self.projection is None:
            return _product(embedding, features)
        # (E W) f: Q products of C x C in place of one for every cell.
        masks = _product(embedding @ self.projection.weight[:, :, 0, 0], features)
        # E b is the same in all cells, and resizing leaves it as it is.
        bias = self.projection.bias
        return masks if bias is None else masks.add_((embedding @ bias)[..., None, None])


@torch.no_grad()
def attention_mask(masks: Tensor, size: Size) -> Tensor:
    """Where each query may look, ``(B, Q, h·w)`` bool on a level of ``size`` (h, w): inside its
    mask, of logits ``(B, Q, H, W)``, or everywhere if that is empty."""
    # The sigmoid is at least one half where the logit is not negative.
    inside = (_resize(masks, size) >= 0).flatten(2)
    return inside | ~inside.any(dim=-1, keepdim=True)


def _product(embedding: Tensor, features: Tensor) -> Tensor:
    # Whatever the features' layout, each mask's numbers come to lie side by side.
    return (embedding @ features.flatten(2)).unflatten(2, features.shape[-2:])


def _resize(maps: Tensor, size: Size) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Sizes:
    """(height, width) of an image on its way."""

    padded: Size  #: the network's input
    image: Size  #: the part of it, from the upper left corner, that is the image
    result: Size  #: what is asked for


def resize_weights(source: int, *steps: tuple[int, int]) -> Tensor:
    """The matrix, ``(kept by the last step, source)`` float32 on the CPU, of linear resizings.

    They have half-pixel centres and no anti-aliasing, and are done one by one: ``steps`` are the
    length to resize to and how much of the result is kept.
    """
    # The columns of a linear map's matrix are its values on the unit vectors.
    # (1, source, source): a batch of unit vectors.
    values = torch.eye(source)[None]
    for length, kept in steps:
        values = F.interpolate(values, size=length, mode="linear", align_corners=False)[..., :kept]
    return values[0].T.contiguous()


class Band:
    """A matrix whose non-zero entries move monotonically to the right, as resizing's do.

    ``weights``, ``(outputs, inputs)``, are on the CPU: an accelerator need not wait for the search.
    """

    def __init__(self, weights: Tensor, device: torch.device):
        # First and one after the last non-zero entry of every row.
        occupied = weights != 0
        self.first = occupied.int().argmax(1).tolist()
        self.last = (weights.shape[1] - occupied.flip(1).int().argmax(1)).tolist()
        self.weights = weights.to(device)

    def inputs(self, outputs: slice) -> slice:
        """The inputs that these outputs are made from."""
        # Bands move to the right: the first output's first entry, the last output's last one.
        return slice(self.first[outputs.start], self.last[outputs.stop - 1])


class SeparableResize:
    """A resizing of ``(N, h, w)`` maps to ``(N, H, W)`` that makes any of the H rows.

    ``read`` returns a slice of the h rows, ``(N, rows, w)`` float32; ``vertical`` and
    ``horizontal`` are the weights, ``(H, h)`` and ``(W, w)``.
    """

    def __init__(
        self,
        read: Callable[[slice], Tensor],
        *,
        vertical: Tensor,
        horizontal: Tensor,
        device: torch.device,
    ):
        self.read = read
        self.vertical = Band(vertical, device)
        self.horizontal = Band(horizontal, device)

    def rows(self, rows: slice) -> Tensor:
        """These rows of the result: ``(N, rows, W)``."""
        # (H, h) · maps · (w, W): the horizontal product first, of the rows that are needed.
        needed = self.vertical.inputs(rows)
        maps = self.read(needed)
        # All rows of all maps in one matrix; a block of columns needs its band alone.
        flat = maps.flatten(0, 1)
        wide = flat.new_empty(len(flat), len(self.horizontal.weights))
        for start in range(0, wide.shape[1], COLUMNS):
            columns = slice(start, min(start + COLUMNS, wide.shape[1]))
            inputs = self.horizontal.inputs(columns)
            weights = self.horizontal.weights[columns, inputs]
            torch.mm(flat[:, inputs], weights.T, out=wide[:, columns])
        return torch.matmul(self.vertical.weights[rows, needed], wide.view(*maps.shape[:2], -1))


def mask_probabilities(
    mask_logits: Tensor,
    queries: Tensor,
    sizes: Sizes,
    *,
    resize_first: bool,
    strip_bytes: int,
) -> Iterator[tuple[slice, Tensor]]:
    """The queries' masks at the result's size, strip by strip from the top.

    Args:
        mask_logits: ``(Q, h, w)``, of any floating-point type and finite.
        queries: ``(N,)`` those wanted; the others are never resized.
        sizes: which to resize to.
        resize_first: resize logits to the result's size and take the sigmoid there. Otherwise it is
            taken at the image's size, and probabilities are resized.
        strip_bytes: bound on a strip, and on each of the few tensors made on the way to it. A strip
            has at least one row.

    Yields:
        rows of the result, and the masks there: ``(N, rows, W)`` float32, in [0, 1].
    """
    device = mask_logits.device
    # Two resizings, to the padded input, cropped to the image, then to the size asked for: one band
    # matrix for each axis. A strip of the result needs a strip of it; the size in between is never
    # made.

    def read_logits(rows: slice) -> Tensor:
        return mask_logits[:, rows].index_select(0, queries).float()

    def resize(
        read: Callable[[slice], Tensor], lengths: Size, *steps: tuple[Size, Size]
    ) -> SeparableResize:
        vertical, horizontal = (
            resize_weights(lengths[axis], *((size[axis], kept[axis]) for size, kept in steps))
            for axis in (0, 1)
        )
        return SeparableResize(read, vertical=vertical, horizontal=horizontal, device=device)

    mask_size = (mask_logits.shape[1], mask_logits.shape[2])
    to_image = (sizes.padded, sizes.image)
    to_result = (sizes.result, sizes.result)
    height, width = sizes.result
    pixels = max(height, mask_size[0]) * width
    if resize_first or sizes.image == sizes.result:
        # Both resizings act on logits: one pair of matrices, then the sigmoid.
        logits = resize(read_logits, mask_size, to_image, to_result)

        def strip(rows: slice) -> Tensor:
            return logits.rows(rows).sigmoid_()
    else:
        # The sigmoid between them keeps the two resizings apart.
        logits = resize(read_logits, mask_size, to_image)
        strip = resize(lambda rows: logits.rows(rows).sigmoid_(), sizes.image, to_result).rows
        pixels = max(pixels, sizes.image[0] * max(sizes.image[1], width))

    # Rows whose masks, float32, fill a strip.
    step = max(1, strip_bytes * height // (4 * max(1, len(queries)) * pixels))
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        yield rows, strip(rows)
