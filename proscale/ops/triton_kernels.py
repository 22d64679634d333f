"""Triton kernels of multi-scale deformable attention and its key-aware form: forward and backward.

One program owns one head and a block of queries of one image. Its tile is
``(BLOCK_N, BLOCK_P, BLOCK_D)``: queries, a level's sampling points, channels. Sizes of feature maps
are data, not constants: images of a new size do not compile anything.

Tensors are contiguous, in the shapes of :func:`proscale.ops.deformable_attention`. ``levels`` is
``(L, 3)`` int32: height, width and first token of each level. Offsets are int64.
"""

# mypy: allow-incomplete-defs, allow-untyped-defs
# Triton reads annotations: arguments without one are values of the running program.

import triton
import triton.language as tl


@triton.jit
def _tile(queries, HEADS: tl.constexpr, BLOCK_N: tl.constexpr):
    """This program's image and head, its rows of ``(B·N·M)`` and which of them exist."""
    # Heads vary fastest: the locations and weights of a query lie side by side over heads, and
    # programs that run together read the same neighbourhood of the maps.
    program = tl.program_id(0)
    head = program % HEADS
    block = program // HEADS
    blocks = tl.cdiv(queries, BLOCK_N)
    image = (block // blocks).to(tl.int64)
    query = (block % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = (image * queries + query) * HEADS + head
    return image, head, rows, query < queries


@triton.jit
def _cell(position, size, ACCUMULATE: tl.constexpr):
    """The cell before a position in [0, 1] and the fraction of the way to the next one."""
    # Cells' centres lie at half-integers.
    position = position.to(ACCUMULATE) * size - 0.5
    before = tl.floor(position)
    return before.to(tl.int32), position - before


@triton.jit
def _level(levels, level):
    """A level's height, width and first token."""
    line = levels + 3 * level
    return tl.load(line), tl.load(line + 1), tl.load(line + 2)


@triton.jit
def _cells(locations, places, valid, height, width, ACCUMULATE: tl.constexpr):
    """Cells of a level's places, ``(BLOCK_N, BLOCK_P)``, and the fractions beyond them."""
    x = tl.load(locations + 2 * places, mask=valid, other=0)
    y = tl.load(locations + 2 * places + 1, mask=valid, other=0)
    column, right = _cell(x, width, ACCUMULATE)
    row, below = _cell(y, height, ACCUMULATE)
    return row, below, column, right


@triton.jit
def _corner(row, column, height, width, start, exists):
    """A corner's token, and whether it lies on the map."""
    # Outside the map values are zero: nothing is loaded there.
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return start + row * width + column, inside & exists


@triton.jit
def _pointers(maps, token, inside, channel, STRIDE: tl.constexpr, DIM: tl.constexpr):
    """Pointers to tokens' channels, ``(BLOCK_N, BLOCK_P, BLOCK_D)``, and their mask."""
    # Channels lie next to each other in memory: a corner is a gather of rows, by vector loads.
    pointers = maps + token.to(tl.int64)[:, :, None] * STRIDE + channel[None, None, :]
    return pointers, inside[:, :, None] & (channel < DIM)[None, None, :]


@triton.jit
def _sample(
    maps,
    row,
    below,
    column,
    right,
    height,
    width,
    start,
    valid,
    channel,
    STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """The values at places, ``(BLOCK_N, BLOCK_P, BLOCK_D)``."""
    samples = tl.zeros((valid.shape[0], valid.shape[1], channel.shape[0]), dtype=ACCUMULATE)
    for down in tl.static_range(2):
        for along in tl.static_range(2):
            token, inside = _corner(row + down, column + along, height, width, start, valid)
            pointers, mask = _pointers(maps, token, inside, channel, STRIDE, DIM)
            factor = (below if down else 1 - below) * (right if along else 1 - right)
            samples += factor[:, :, None] * tl.load(pointers, mask=mask, other=0).to(ACCUMULATE)
    return samples


@triton.jit
def _logits(samples, asked, point, POINTS: tl.constexpr):
    """Products of samples with the queries, ``(BLOCK_N, BLOCK_P)``; -∞ beyond the points."""
    logits = tl.sum(samples * asked[:, None, :], axis=2)
    return tl.where((point < POINTS)[None, :], logits, float("-inf"))


@triton.jit(do_not_specialize=["tokens", "queries"])
def forward_kernel(
    output,
    value,
    levels,
    locations,
    weights,
    tokens,
    queries,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``output`` of ``(B, N, M·D)``, summed in the dtype ``ACCUMULATE``."""
    image, head, rows, exists = _tile(queries, HEADS, BLOCK_N)
    point = tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_D)
    valid = exists[:, None] & (point < POINTS)[None, :]
    maps = value + image * tokens * (HEADS * DIM) + head * DIM

    # Points are summed once at the end: until then no thread waits for another.
    total = tl.zeros((BLOCK_N, BLOCK_P, BLOCK_D), dtype=ACCUMULATE)
    for level in tl.static_range(LEVELS):
        height, width, start = _level(levels, level)
        places = (rows * LEVELS + level)[:, None] * POINTS + point[None, :]
        weight = tl.load(weights + places, mask=valid, other=0).to(ACCUMULATE)
        row, below, column, right = _cells(locations, places, valid, height, width, ACCUMULATE)
        # Σ over the four corners of attention weight · bilinear weight · value.
        for down in tl.static_range(2):
            for along in tl.static_range(2):
                token, inside = _corner(row + down, column + along, height, width, start, valid)
                pointers, mask = _pointers(maps, token, inside, channel, HEADS * DIM, DIM)
                factor = weight * (below if down else 1 - below) * (right if along else 1 - right)
                total += factor[:, :, None] * tl.load(pointers, mask=mask, other=0).to(ACCUMULATE)

    places = rows[:, None] * DIM + channel[None, :]
    mask = exists[:, None] & (channel < DIM)[None, :]
    tl.store(output + places, tl.sum(total, axis=1).to(output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "queries"])
def backward_kernel(
    grad_value,
    grad_locations,
    grad_weights,
    grad_output,
    value,
    levels,
    locations,
    weights,
    tokens,
    queries,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Adds to ``grad_value``, which has the dtype ``ACCUMULATE``; writes the two others."""
    image, head, rows, exists = _tile(queries, HEADS, BLOCK_N)
    point = tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_D)
    valid = exists[:, None] & (point < POINTS)[None, :]
    offset = image * tokens * (HEADS * DIM) + head * DIM

    places = rows[:, None] * DIM + channel[None, :]
    mask = exists[:, None] & (channel < DIM)[None, :]
    grad = tl.load(grad_output + places, mask=mask, other=0).to(ACCUMULATE)[:, None, :]
    for level in tl.static_range(LEVELS):
        height, width, start = _level(levels, level)
        places = (rows * LEVELS + level)[:, None] * POINTS + point[None, :]
        weight = tl.load(weights + places, mask=valid, other=0).to(ACCUMULATE)
        row, below, column, right = _cells(locations, places, valid, height, width, ACCUMULATE)
        grad_x = tl.zeros((BLOCK_N, BLOCK_P), dtype=ACCUMULATE)
        grad_y = tl.zeros((BLOCK_N, BLOCK_P), dtype=ACCUMULATE)
        grad_weight = tl.zeros((BLOCK_N, BLOCK_P), dtype=ACCUMULATE)
        for down in tl.static_range(2):
            for along in tl.static_range(2):
                token, inside = _corner(row + down, column + along, height, width, start, valid)
                pointers, mask = _pointers(value + offset, token, inside, channel, HEADS * DIM, DIM)
                cell = tl.load(pointers, mask=mask, other=0).to(ACCUMULATE)
                # ⟨value, gradient⟩ of the corner, times the derivative of its bilinear weight.
                change = tl.sum(cell * grad, axis=2)
                vertical = below if down else 1 - below
                horizontal = right if along else 1 - right
                grad_weight += vertical * horizontal * change
                grad_x += (vertical if along else -vertical) * change
                grad_y += (horizontal if down else -horizontal) * change
        # A second pass over the corners: loads are not moved across atomics, so that those of the
        # first one are in flight together.
        for down in tl.static_range(2):
            for along in tl.static_range(2):
                token, inside = _corner(row + down, column + along, height, width, start, valid)
                pointers, mask = _pointers(
                    grad_value + offset, token, inside, channel, HEADS * DIM, DIM
                )
                factor = weight * (below if down else 1 - below) * (right if along else 1 - right)
                tl.atomic_add(pointers, factor[:, :, None] * grad, mask=mask, sem="relaxed")
        # Locations are fractions of the map: a unit is `width` or `height` cells.
        dtype = grad_locations.dtype.element_ty
        tl.store(grad_locations + 2 * places, (width * weight * grad_x).to(dtype), mask=valid)
        tl.store(grad_locations + 2 * places + 1, (height * weight * grad_y).to(dtype), mask=valid)
        dtype = grad_weights.dtype.element_ty
        tl.store(grad_weights + places, grad_weight.to(dtype), mask=valid)


@triton.jit(do_not_specialize=["tokens", "queries"])
def key_aware_forward_kernel(
    output,
    query,
    value,
    levels,
    locations,
    tokens,
    queries,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``output`` of ``(B, N, M·D)``: one gather, with a softmax that runs over the levels."""
    image, head, rows, exists = _tile(queries, HEADS, BLOCK_N)
    point = tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_D)
    valid = exists[:, None] & (point < POINTS)[None, :]
    maps = value + image * tokens * (HEADS * DIM) + head * DIM
    vectors = rows[:, None] * DIM + channel[None, :]
    is_vector = exists[:, None] & (channel < DIM)[None, :]
    asked = tl.load(query + vectors, mask=is_vector, other=0).to(ACCUMULATE) * DIM**-0.5

    # Largest logit, sum of exponentials and of weighted values so far; a larger logit rescales
    # them, so that a level's samples are needed once.
    largest = tl.full((BLOCK_N,), float("-inf"), dtype=ACCUMULATE)
    norm = tl.zeros((BLOCK_N,), dtype=ACCUMULATE)
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype=ACCUMULATE)
    for level in tl.static_range(LEVELS):
        height, width, start = _level(levels, level)
        places = (rows * LEVELS + level)[:, None] * POINTS + point[None, :]
        row, below, column, right = _cells(locations, places, valid, height, width, ACCUMULATE)
        samples = _sample(
            maps, row, below, column, right, height, width, start, valid, channel,
            HEADS * DIM, DIM, ACCUMULATE,
        )  # fmt: skip
        # As keys: q · k / √D.
        logits = _logits(samples, asked, point, POINTS)
        before = largest
        largest = tl.maximum(before, tl.max(logits, axis=1))
        rescale = tl.exp(before - largest)
        exponentials = tl.exp(logits - largest[:, None])
        # As values: Σ exp(logit) · v.
        norm = norm * rescale + tl.sum(exponentials, axis=1)
        total = total * rescale[:, None] + tl.sum(exponentials[:, :, None] * samples, axis=1)

    attended = total / norm[:, None]
    tl.store(output + vectors, attended.to(output.dtype.element_ty), mask=is_vector)


@triton.jit(do_not_specialize=["tokens", "queries"])
def key_aware_backward_kernel(
    grad_query,
    grad_value,
    grad_locations,
    grad_output,
    query,
    value,
    levels,
    locations,
    tokens,
    queries,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Adds to ``grad_value``, which has the dtype ``ACCUMULATE``; writes the two others."""
    image, head, rows, exists = _tile(queries, HEADS, BLOCK_N)
    point = tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_D)
    valid = exists[:, None] & (point < POINTS)[None, :]
    offset = image * tokens * (HEADS * DIM) + head * DIM
    vectors = rows[:, None] * DIM + channel[None, :]
    is_vector = exists[:, None] & (channel < DIM)[None, :]
    asked = tl.load(query + vectors, mask=is_vector, other=0).to(ACCUMULATE) * DIM**-0.5
    grad = tl.load(grad_output + vectors, mask=is_vector, other=0).to(ACCUMULATE)[:, None, :]

    # The forward pass again, for the softmax and the mean of ⟨value, gradient⟩ under it.
    largest = tl.full((BLOCK_N,), float("-inf"), dtype=ACCUMULATE)
    norm = tl.zeros((BLOCK_N,), dtype=ACCUMULATE)
    mean = tl.zeros((BLOCK_N,), dtype=ACCUMULATE)
    for level in tl.static_range(LEVELS):
        height, width, start = _level(levels, level)
        places = (rows * LEVELS + level)[:, None] * POINTS + point[None, :]
        row, below, column, right = _cells(locations, places, valid, height, width, ACCUMULATE)
        samples = _sample(
            value + offset, row, below, column, right, height, width, start, valid, channel,
            HEADS * DIM, DIM, ACCUMULATE,
        )  # fmt: skip
        logits = _logits(samples, asked, point, POINTS)
        before = largest
        largest = tl.maximum(before, tl.max(logits, axis=1))
        rescale = tl.exp(before - largest)
        exponentials = tl.exp(logits - largest[:, None])
        norm = norm * rescale + tl.sum(exponentials, axis=1)
        change = tl.sum(samples * grad, axis=2)
        mean = mean * rescale + tl.sum(exponentials * change, axis=1)
    mean /= norm

    grad_asked = tl.zeros((BLOCK_N, BLOCK_D), dtype=ACCUMULATE)
    for level in tl.static_range(LEVELS):
        height, width, start = _level(levels, level)
        places = (rows * LEVELS + level)[:, None] * POINTS + point[None, :]
        row, below, column, right = _cells(locations, places, valid, height, width, ACCUMULATE)
        samples = _sample(
            value + offset, row, below, column, right, height, width, start, valid, channel,
            HEADS * DIM, DIM, ACCUMULATE,
        )  # fmt: skip
        logits = _logits(samples, asked, point, POINTS)
        weight = tl.exp(logits - largest[:, None]) / norm[:, None]
        # Softmax: the gradient of a logit.
        by_logit = weight * (tl.sum(samples * grad, axis=2) - mean[:, None])
        grad_asked += tl.sum(by_logit[:, :, None] * samples, axis=1)
        # The gradient of a sample, as value and as key.
        by_sample = weight[:, :, None] * grad + by_logit[:, :, None] * asked[:, None, :]

        grad_x = tl.zeros((BLOCK_N, BLOCK_P), dtype=ACCUMULATE)
        grad_y = tl.zeros((BLOCK_N, BLOCK_P), dtype=ACCUMULATE)
        for down in tl.static_range(2):
            for along in tl.static_range(2):
                token, inside = _corner(row + down, column + along, height, width, start, valid)
                pointers, mask = _pointers(value + offset, token, inside, channel, HEADS * DIM, DIM)
                cell = tl.load(pointers, mask=mask, other=0).to(ACCUMULATE)
                # ⟨value, gradient⟩ of the corner, times the derivative of its bilinear weight.
                change = tl.sum(cell * by_sample, axis=2)
                vertical = below if down else 1 - below
                horizontal = right if along else 1 - right
                grad_x += (vertical if along else -vertical) * change
                grad_y += (horizontal if down else -horizontal) * change
        # A second pass over the corners, as in `backward_kernel`.
        for down in tl.static_range(2):
            for along in tl.static_range(2):
                token, inside = _corner(row + down, column + along, height, width, start, valid)
                pointers, mask = _pointers(
                    grad_value + offset, token, inside, channel, HEADS * DIM, DIM
                )
                factor = (below if down else 1 - below) * (right if along else 1 - right)
                tl.atomic_add(pointers, factor[:, :, None] * by_sample, mask=mask, sem="relaxed")
        dtype = grad_locations.dtype.element_ty
        tl.store(grad_locations + 2 * places, (width * grad_x).to(dtype), mask=valid)
        tl.store(grad_locations + 2 * places + 1, (height * grad_y).to(dtype), mask=valid)

    dtype = grad_query.dtype.element_ty
    tl.store(grad_query + vectors, (grad_asked * DIM**-0.5).to(dtype), mask=is_vector)
