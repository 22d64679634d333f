"""Multi-scale deformable attention for the CPU, without a compiler.

Every output is a weighted sum of rows of a table: a query's head gathers four cells for each of its
L·P points. ``torch.embedding_bag`` computes such sums at the speed of memory; what is left is to
make the rows' numbers and weights in few passes, over blocks of queries that stay in the cache.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csc_array
from torch import Tensor
from torch.nn import functional as F

from proscale.ops.fused import softmax_small_dim

# Points per block: its temporaries fit a core's second-level cache.
BLOCK_POINTS = 96 * 1024
# The same of points whose samples are kept, D numbers each.
BLOCK_SAMPLES = 16 * 1024
# Threads that scatter gradients, at most: each makes a table of its own, and all are added up.
SCATTER_THREADS = 4


def forward(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """See :func:`proscale.ops.deformable_attention`; without autograd."""
    batch, _, heads, width = value.shape
    queries = sampling_locations.shape[1]
    values, locations, weights = _inputs(value, sampling_locations, attention_weights)
    plan = _plan(tuple(spatial_shapes), heads, weights.shape[4], values.dtype)
    output = values.new_empty(batch, queries, heads * width)
    for image in range(batch):
        table = values[image].reshape(-1, width).contiguous()
        for block in _blocks(queries, heads, plan):
            # Rows of the table and their weights: four cells for each of a bag's L·P points.
            cells = plan.cells(locations[image, block])
            attention = weights[image, block].flatten(2)
            # A bag is a query's head: the weighted sum of its rows.
            sums = _sum_bags(table, cells.rows, cells.row_weights(attention), len(cells.rows))
            output[image, block] = sums.view(-1, heads * width)
    return output.to(value.dtype)


def backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to its three tensors."""
    batch, tokens, heads, width = value.shape
    queries = sampling_locations.shape[1]
    values, locations, weights = _inputs(value, sampling_locations, attention_weights)
    plan = _plan(tuple(spatial_shapes), heads, weights.shape[4], values.dtype)
    gradients = grad_output.to(values.dtype).reshape(batch, queries * heads, width).contiguous()
    grad_value = torch.empty_like(values)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    for image in range(batch):
        table = values[image].reshape(-1, width).contiguous()
        rows = torch.empty((queries * heads, plan.row_of.shape[1]), dtype=torch.int32)
        row_weights = values.new_empty(rows.shape)
        for block in _blocks(queries, heads, plan):
            bags = slice(block.start * heads, block.stop * heads)
            cells = plan.cells(locations[image, block])
            attention = weights[image, block].flatten(2)
            rows[bags] = cells.rows
            row_weights[bags] = cells.row_weights(attention)
            # Gradient of every row's weight, and from it of locations and attention.
            sampled = _sample(cells.rows, gradients[image, bags], table)
            by_location, by_weight = cells.gradients(attention, sampled)
            grad_locations[image, block] = by_location.view_as(grad_locations[image, block])
            grad_weights[image, block] = by_weight.view_as(grad_weights[image, block])
        # Gradient of the values, over all blocks together.
        grad_value[image] = _scatter(rows, row_weights, gradients[image], len(table)).view(
            tokens, heads, width
        )
    return (
        grad_value.to(value.dtype),
        grad_locations.to(sampling_locations.dtype),
        grad_weights.to(attention_weights.dtype),
    )


def key_aware_forward(
    query: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
) -> Tensor:
    """See :func:`proscale.ops.key_aware_deformable_attention`; without autograd."""
    batch, queries, heads, width = query.shape
    values, locations, scaled = _inputs(value, sampling_locations, query)
    scaled = scaled * width**-0.5
    plan = _plan(tuple(spatial_shapes), heads, locations.shape[4], values.dtype)
    output = values.new_empty(batch, queries, heads * width)
    for image in range(batch):
        table = values[image].reshape(-1, width).contiguous()
        for block in _blocks(queries, heads, plan):
            cells = plan.cells(locations[image, block])
            bilinear, asked = cells.row_weights(_ones(cells)), scaled[image, block]
            points = bilinear.shape[1] // 4
            # A bag is a query's head; a part of them at a time, for the samples are D times as
            # large as the places.
            parts = (cells.rows, bilinear, asked.reshape(-1, width, 1))
            sums = [
                _attend_samples(table, *part)
                for part in zip(
                    *(part.split(max(1, BLOCK_SAMPLES // points)) for part in parts), strict=True
                )
            ]
            output[image, block] = torch.cat(sums).view(-1, heads * width)
    return output.to(value.dtype)


def _attend_samples(table: Tensor, rows: Tensor, bilinear: Tensor, query: Tensor) -> Tensor:
    """Attention of ``query`` ``(R, D, 1)``, scaled, to the K places of each bag: ``(R, D)``.

    ``rows`` and their ``bilinear`` weights, ``(R, 4K)``, are those of the places.
    """
    bags, points = len(rows), rows.shape[1] // 4
    # One gather for keys and values: the sum of four cells for each place, (R·K, D).
    samples = _sum_bags(table, rows, bilinear, bags * points)
    # softmax(q · k / √D) over the K places of a query's head.
    logits = torch.bmm(samples.view(bags, points, -1), query).squeeze(2)
    weights = softmax_small_dim(logits)
    # The samples are the table now, in the order of their bags.
    return _sum_bags(samples, _indices(bags * points), weights, bags)


def key_aware_backward(
    grad_output: Tensor,
    query: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`key_aware_forward` with respect to its three tensors."""
    batch, queries, heads, width = query.shape
    values, locations, scaled = _inputs(value, sampling_locations, query)
    scaled = (scaled * width**-0.5).reshape(batch, queries * heads, width)
    plan = _plan(tuple(spatial_shapes), heads, locations.shape[4], values.dtype)
    gradients = grad_output.to(values.dtype).reshape(batch, queries * heads, width).contiguous()
    grad_query, grad_value = torch.empty_like(scaled), torch.empty_like(values)
    grad_locations = torch.empty_like(locations)
    for image in range(batch):
        table = values[image].reshape(-1, width).contiguous()
        rows = torch.empty((queries * heads, plan.row_of.shape[1]), dtype=torch.int32)
        by_value, by_key = values.new_empty(rows.shape), values.new_empty(rows.shape)
        for block in _blocks(queries, heads, plan):
            bags = slice(block.start * heads, block.stop * heads)
            cells = plan.cells(locations[image, block])
            rows[bags], ones = cells.rows, _ones(cells)
            # Products of a sample s with the output's gradient g and with the query q, and their
            # derivatives by place: all that is needed of the samples.
            place_g, product_g = cells.gradients(
                ones, _sample(cells.rows, gradients[image, bags], table)
            )
            place_q, logits = cells.gradients(ones, _sample(cells.rows, scaled[image, bags], table))
            # Softmax: ∂/∂logit_k = a_k (g · s_k - Σ a_j g · s_j).
            weights = softmax_small_dim(logits)
            by_logit = weights * (product_g - (weights * product_g).sum(-1, keepdim=True))
            # A sample has the gradient a_k g as value and ∂/∂logit_k q as key.
            by_place = place_g.mul_(weights[..., None]).addcmul_(place_q, by_logit[..., None])
            grad_locations[image, block] = by_place.view_as(grad_locations[image, block])
            by_value[bags] = cells.row_weights(weights)
            by_key[bags] = cells.row_weights(by_logit)
            # ∂/∂q = Σ ∂/∂logit_k s_k.
            grad_query[image, bags] = _sum_bags(table, rows[bags], by_key[bags], len(cells.rows))
        # Gradient of the values, over all blocks together: two bags for each query's head.
        grad_value[image] = _scatter(
            torch.cat((rows, rows)),
            torch.cat((by_value, by_key)),
            torch.cat((gradients[image], scaled[image])),
            len(table),
        ).view_as(values[image])
    return (
        grad_query.mul_(width**-0.5).view_as(query).to(query.dtype),
        grad_value.to(value.dtype),
        grad_locations.to(sampling_locations.dtype),
    )


class Cells(NamedTuple):
    """The cells around the points of some queries. R = queries·heads, K = L·P points each."""

    rows: Tensor  #: ``(R, 4K)`` int32, rows of the table: for each point (y, x) of 00, 01, 10, 11
    distance: Tensor  #: ``(n, M, 2K)`` signed, cells, from the first cell; x and y in turn
    near: Tensor  #: ``(n, M, K, 2)`` weight of the first cell along x and y
    far: Tensor  #: ``(n, M, K, 2)`` weight of its neighbour
    scale: Tensor  #: ``(2K,)`` cells per unit of location
    single: Tensor | None  #: ``(2K,)`` 0 where a level is one cell long, else 1; None if never

    def row_weights(self, attention: Tensor) -> Tensor:
        """Bilinear weight times attention, ``(n, M, K)``, of every row: ``(R, 4K)``."""
        weights = attention.new_empty(*attention.shape, 2, 2)
        for y, along_y in enumerate((self.near, self.far)):
            by_row = attention * along_y[..., 1]
            for x, along_x in enumerate((self.near, self.far)):
                torch.mul(by_row, along_x[..., 0], out=weights[..., y, x])
        return weights.view(self.rows.shape)

    def gradients(self, attention: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of locations ``(n, M, K, 2)`` and attention ``(n, M, K)``; ``sampled``,
        ``(R, 4K)``, is that of the weight of every row."""
        # The output is Σ a · w_y · w_x · value: derivatives by a, and by x and y through w.
        corner = sampled.view(*attention.shape, 2, 2)
        # Derivatives of `near` and `far` along x and y; at a cell's centre those of the side where
        # coordinates grow, as grid_sample has it.
        below = [torch.lt(self.distance, bound).view(torch.int8) for bound in (-1, 0, 1, 2)]
        near_slope, far_slope = (
            (2 * below[i + 1] - below[i] - below[i + 2]).to(self.near.dtype) for i in (0, 1)
        )
        if self.single is not None:
            far_slope = far_slope * self.single
        near_slope, far_slope = near_slope.view_as(self.near), far_slope.view_as(self.far)
        by_y = [  # at the rows of the first and the second y
            _mix(corner[..., y, 0], corner[..., y, 1], self.near, self.far, 0) for y in (0, 1)
        ]
        slope_by_y = [
            _mix(corner[..., y, 0], corner[..., y, 1], near_slope, far_slope, 0) for y in (0, 1)
        ]
        # Along y what x has left; by attention the sample itself.
        by_attention = _mix(by_y[0], by_y[1], self.near, self.far, 1)
        by_cell = attention.new_empty(*attention.shape, 2)
        torch.mul(
            attention,
            _mix(slope_by_y[0], slope_by_y[1], self.near, self.far, 1),
            out=by_cell[..., 0],
        )
        torch.mul(attention, _mix(by_y[0], by_y[1], near_slope, far_slope, 1), out=by_cell[..., 1])
        # Locations are fractions of the map, a unit of which is `scale` cells.
        by_location = by_cell.flatten(2).mul_(self.scale)
        return by_location.view(by_cell.shape), by_attention


def _mix(first: Tensor, second: Tensor, near: Tensor, far: Tensor, axis: int) -> Tensor:
    """``first`` and ``second`` weighted by the cells' weights along an axis."""
    return (first * near[..., axis]).addcmul_(second, far[..., axis])


class Plan(NamedTuple):
    """What depends on the levels alone; K = L·P points a query and head, x and y in turn."""

    scale: Tensor  #: ``(2K,)`` cells of the level along x and y
    last: Tensor  #: ``(2K,)`` greatest coordinate of a first cell
    single: Tensor | None  #: ``(2K,)`` 0 where a level is one cell long, else 1; None if never
    row_of: Tensor  #: ``(2K + 2, 4K)`` float64: (coordinates, 1, head) to rows of the table

    def cells(self, locations: Tensor) -> Cells:
        """``locations``: ``(n, M, L, P, 2)``."""
        queries, heads = locations.shape[:2]
        # Locations in cells of the level. The coordinates of cells' centres are whole numbers.
        place = (locations.flatten(2) * self.scale).sub_(0.5)
        # The first of the two cells along an axis, clamped so that its neighbour is inside as well.
        first = place.floor().clamp_(max=self.last).clamp_min_(0)
        # A sum is finite only if all its terms are. Places that are not, infinite ones like nan,
        # have a cell, so that rows stay inside, and weights that are nan.
        if not place.sum().isfinite():
            place.nan_to_num_(math.nan, math.nan, math.nan)
            first.nan_to_num_(0)
        coordinates = first.new_empty((queries, heads, len(self.row_of)), dtype=torch.float64)
        coordinates[..., :-2] = first
        coordinates[..., -2] = 1
        coordinates[..., -1] = torch.arange(heads)
        # The numbers of the four rows are a linear function of the cell's coordinates: one matrix
        # product, exact in float64, whatever precision the user allows products of float32.
        rows = (coordinates.flatten(0, 1) @ self.row_of).to(torch.int32)
        # A cell's bilinear weight along an axis is max(0, 1 - distance): zero for whatever lies
        # outside, so that no cell needs a test.
        distance = place.sub_(first)
        near = _hat(distance.clone())
        far = _hat(distance - 1)
        if self.single is not None:
            far *= self.single
        shape = (queries, heads, -1, 2)
        return Cells(rows, distance, near.view(shape), far.view(shape), self.scale, self.single)


def _hat(distance: Tensor) -> Tensor:
    """``max(0, 1 - |distance|)``, in place."""
    return distance.abs_().neg_().add_(1).clamp_min_(0)


@lru_cache(maxsize=64)
def _plan(
    spatial_shapes: tuple[tuple[int, int], ...], heads: int, points: int, dtype: torch.dtype
) -> Plan:
    # (x, y) of each of the K points of a query and head, level by level.
    size = torch.tensor([(width, height) for height, width in spatial_shapes])
    lengths = size.prod(1)
    start = (lengths.cumsum(0) - lengths).repeat_interleave(points)
    size = size.repeat_interleave(points, 0)
    columns = len(size)
    # A row's number: ((start + y · width + x) · heads + head, for x and y of the four cells.
    stride = torch.stack((torch.ones(columns, dtype=torch.int64), size[:, 0]), 1) * heads
    step = stride * (size > 1)
    corner = torch.stack((torch.zeros_like(step), step), 2)  # (K, axis, near or far)
    row_of = torch.zeros(columns, 2, columns, 2, 2, dtype=torch.float64)
    each = torch.arange(columns)
    row_of[each, :, each] = stride[:, :, None, None].double()
    constant = (start * heads)[:, None, None] + corner[:, 1, :, None] + corner[:, 0, None, :]
    # Constant terms: where the level starts, and the steps to the neighbours; then the head.
    row_of = torch.cat(
        (
            row_of.view(2 * columns, 4 * columns),
            constant.view(1, -1).double(),
            torch.ones(1, 4 * columns, dtype=torch.float64),
        )
    )
    single = None if bool((size > 1).all()) else (size > 1).flatten().to(dtype)
    last = (size - 2).clamp(min=0)
    return Plan(size.flatten().to(dtype), last.flatten().to(dtype), single, row_of)


@lru_cache(maxsize=64)
def _offsets(bags: int, length: int) -> Tensor:
    """First index of each of ``bags`` bags of equal ``length``."""
    return torch.arange(0, bags * length, length, dtype=torch.int32)


@lru_cache(maxsize=8)
def _indices(length: int) -> Tensor:
    """0, 1, …: the rows of a table in their order."""
    return torch.arange(length, dtype=torch.int32)


def _ones(cells: Cells) -> Tensor:
    """Attention ``(n, M, K)`` of one to every place, which leaves the bilinear weights."""
    return cells.near.new_ones(()).expand(cells.near.shape[:3])


def _inputs(
    value: Tensor, sampling_locations: Tensor, attention: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """All three, with weights or queries, in float32, or float64 if the values are."""
    # Sums of half precision lose digits and gain no time.
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    return value.to(dtype), sampling_locations.to(dtype), attention.to(dtype)


def _blocks(queries: int, heads: int, plan: Plan) -> Iterator[slice]:
    length = max(1, BLOCK_POINTS // (heads * plan.row_of.shape[1] // 4))
    for start in range(0, queries, length):
        yield slice(start, min(start + length, queries))


def _sum_bags(table: Tensor, rows: Tensor, weights: Tensor, bags: int) -> Tensor:
    """Weighted sums of rows, as many for each of ``bags``: ``(bags, D)``."""
    sums, *_ = torch.embedding_bag(
        table,
        rows.flatten(),
        _offsets(bags, rows.numel() // max(bags, 1)),
        mode=0,
        per_sample_weights=weights.flatten(),
    )
    return sums


def _scatter(rows: Tensor, row_weights: Tensor, gradients: Tensor, num_rows: int) -> Tensor:
    """Add each bag's gradient, weighted, to the rows it gathered: ``(num_rows, D)``."""
    pointers = _offsets(len(rows) + 1, rows.shape[1]).numpy()

    def scatter(rows: Tensor, row_weights: Tensor, gradients: Tensor) -> np.ndarray:
        # The transpose of the forward pass, as a sparse product: bags are the columns, in
        # compressed form, with the weights as entries.
        entries = (row_weights.numpy().ravel(), rows.numpy().ravel(), pointers[: len(rows) + 1])
        return csc_array(entries, shape=(num_rows, len(rows))) @ gradients.numpy()

    # SciPy works in the thread that calls it, and lets others work meanwhile.
    parts = [
        part.chunk(min(SCATTER_THREADS, torch.get_num_threads()))
        for part in (rows, row_weights, gradients)
    ]
    # Each thread scatters into a table of its own.
    with ThreadPoolExecutor(len(parts[0])) as pool:
        first, *others = pool.map(scatter, *parts)
    for other in others:
        first += other
    return torch.from_numpy(first)


def _sample(rows: Tensor, gradients: Tensor, table: Tensor) -> Tensor:
    """Product of each bag's gradient with the rows it gathered: ``(bags, length)``."""
    # The dense product of gradients and table, sampled at the places of the rows alone.
    bags, length = rows.shape
    # PyTorch allocates no more entries than a dense result has, though rows may repeat. Maps of a
    # few cells have fewer rows than a bag: blank ones make up for them.
    if len(table) < length:
        table = F.pad(table, (0, 0, 0, length - len(table)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        places = torch.sparse_csr_tensor(
            _offsets(bags + 1, length),
            rows.flatten(),
            table.new_zeros(rows.numel()),
            (bags, len(table)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(places, gradients, table.T, beta=0.0).values().view_as(rows)
