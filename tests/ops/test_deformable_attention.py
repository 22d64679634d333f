"""The deformable attention operators against their definitions, written as loops."""

import importlib
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proscale.ops import (
    available_backends,
    deformable_attention,
    key_aware_deformable_attention,
)


def literal(value, spatial_shapes, locations, weights):
    """The definition, one sampling point at a time."""
    batch, queries, heads, levels, points, _ = locations.shape
    output = value.new_zeros(batch, queries, heads, value.shape[3])
    starts = [0, *itertools.accumulate(h * w for h, w in spatial_shapes)]
    ranges = map(range, (batch, queries, heads, levels, points))
    for b, n, m, level, p in itertools.product(*ranges):
        height, width = spatial_shapes[level]
        x, y = (locations[b, n, m, level, p] * locations.new_tensor([width, height]) - 0.5).tolist()
        for row, column in itertools.product(
            (math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)
        ):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(y - row)) * (1 - abs(x - column))
                cell = value[b, starts[level] + row * width + column, m]
                output[b, n, m] += weights[b, n, m, level, p] * share * cell
    return output.flatten(2)


def literal_key_aware(query, value, spatial_shapes, locations):
    """The definition: samples place by place, then attention to them."""
    *_, levels, points, _ = locations.shape
    samples = []
    for place in range(levels * points):
        alone = torch.zeros(locations.shape[:3] + (levels * points,), dtype=value.dtype)
        alone[..., place] = 1
        alone = alone.unflatten(3, (levels, points))
        samples.append(literal(value, spatial_shapes, locations, alone).view_as(query))
    keys = values = torch.stack(samples)
    weights = ((query * keys).sum(-1) / math.sqrt(query.shape[-1])).softmax(0)
    return (weights[..., None] * values).sum(0).flatten(2)


def key_aware_inputs(shapes, **sizes):
    value, shapes, locations, _ = inputs(shapes, **sizes)
    shape = (*locations.shape[:3], value.shape[3])
    query = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
    return 2 * query, value, shapes, locations


def inputs(shapes, *, batch=2, queries=3, heads=2, width=4, points=2, spread=1.5):
    generator = torch.Generator().manual_seed(0)
    make = {"generator": generator, "dtype": torch.float64}
    tokens, levels = sum(h * w for h, w in shapes), len(shapes)
    value = torch.randn(batch, tokens, heads, width, **make)
    # Also far outside the map.
    locations = torch.randn(batch, queries, heads, levels, points, 2, **make) * spread + 0.5
    weights = torch.rand(batch, queries, heads, levels, points, **make)
    return value, shapes, locations, weights


SHAPES = [[(3, 5)], [(1, 1)], [(2, 3), (4, 6), (7, 11)], [(1, 4), (5, 1)]]
# Maps of images of up to 32 pixels: a bag has more rows than the table.
TINY = [[(1, 1)], [(1, 2)], [(1, 1), (1, 1), (1, 1)], [(2, 2), (1, 1)]]


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_equals_definition(backend, shapes):
    arguments = inputs(shapes)
    torch.testing.assert_close(
        deformable_attention(*arguments, backend=backend), literal(*arguments)
    )


SMALL = st.integers(1, 3)


@pytest.mark.parametrize("backend", available_backends())
@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    batch=st.integers(0, 2),
    queries=st.integers(0, 3),
    heads=SMALL,
    width=SMALL,
    points=SMALL,
    spread=st.floats(0, 1e4),
)
def test_equals_definition_whatever_the_sizes(backend, shapes, **sizes):
    arguments = inputs(shapes, **sizes)
    torch.testing.assert_close(
        deformable_attention(*arguments, backend=backend), literal(*arguments)
    )


@pytest.mark.parametrize("backend", available_backends())
def test_gradients(backend):
    value, shapes, locations, weights = inputs([(3, 5), (2, 2)], spread=0.3)
    tensors = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert torch.autograd.gradcheck(
        lambda v, x, w: deformable_attention(v, shapes, x, w, backend=backend), tensors
    )


@pytest.mark.parametrize("shapes", TINY, ids=str)
@pytest.mark.parametrize(("queries", "heads", "points"), [(1, 8, 4), (5, 8, 4), (3, 1, 1)])
def test_gradients_on_tiny_maps(shapes, queries, heads, points):
    arguments = inputs(shapes, queries=queries, heads=heads, points=points, spread=0.3)
    tensors = [argument.requires_grad_() for argument in arguments if torch.is_tensor(argument)]
    expected, found = (
        torch.autograd.grad(
            deformable_attention(*arguments, backend=backend).square().sum(), tensors
        )
        for backend in ("reference", "embedding_bag")
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_places_that_are_no_numbers_stay_with_their_query(wrong, axis, backend):
    value, shapes, locations, weights = inputs([(3, 5), (2, 2)], batch=1)
    right = deformable_attention(value, shapes, locations, weights, backend=backend)
    locations[0, 1, 0, 0, 0, axis] = wrong
    found = deformable_attention(value, shapes, locations, weights, backend=backend)
    width = value.shape[3]
    assert found[0, 1, :width].isnan().all()
    found[0, 1, :width] = right[0, 1, :width]
    assert torch.equal(found, right)


@pytest.mark.parametrize("queries", [0, 1, 5])
def test_gradients_do_not_depend_on_the_number_of_threads(monkeypatch, queries):
    value, shapes, locations, weights = inputs([(3, 5), (2, 2)], queries=queries, spread=0.3)
    gradients = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        leaf = value.clone().requires_grad_()
        output = deformable_attention(leaf, shapes, locations, weights, backend="embedding_bag")
        (output**2).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", available_backends())
def test_empty_batch(backend):
    assert deformable_attention(*inputs([(3, 5)], batch=0), backend=backend).shape == (0, 3, 8)


@pytest.mark.parametrize("backend", available_backends())
def test_half_precision_values_keep_full_precision_locations(backend):
    value, shapes, locations, weights = inputs([(40, 60)], queries=50, spread=0.2)
    expected = deformable_attention(value, shapes, locations, weights, backend=backend)
    output = deformable_attention(
        value.bfloat16(), shapes, locations.float(), weights.float(), backend=backend
    )
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), expected, rtol=0.02, atol=0.03)


def test_wrong_arguments_are_named():
    value, shapes, locations, weights = inputs([(3, 5)])
    with pytest.raises(ValueError, match=r"backend is 'cuda11': expected reference, embedding_bag"):
        deformable_attention(value, shapes, locations, weights, backend="cuda11")
    with pytest.raises(ValueError, match=r"value holds 15 tokens, .*make 16"):
        deformable_attention(value, [(4, 4)], locations, weights)
    with pytest.raises(ValueError, match=r"sampling_locations has shape"):
        deformable_attention(value, shapes, locations[..., :1], weights)
    with pytest.raises(ValueError, match=r"attention_weights has shape"):
        deformable_attention(value, shapes, locations, weights[..., :1])


def test_the_backend_is_logged_once(caplog):
    # In the package the function has the module's name.
    importlib.import_module("proscale.ops.deformable_attention")._log_once.cache_clear()
    value, locations = torch.rand(1, 6, 1, 2), torch.rand(1, 2, 1, 1, 1, 2)
    with caplog.at_level("INFO"):
        for _ in range(2):
            deformable_attention(value, [(2, 3)], locations, torch.ones(1, 2, 1, 1, 1))
    assert [record.message for record in caplog.records] == [
        "deformable attention on cpu: backend embedding_bag"
    ]


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_key_aware_equals_definition(backend, shapes):
    arguments = key_aware_inputs(shapes)
    found = key_aware_deformable_attention(*arguments, backend=backend)
    torch.testing.assert_close(found, literal_key_aware(*arguments))


@pytest.mark.parametrize("backend", available_backends())
@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    batch=st.integers(0, 2),
    queries=st.integers(0, 3),
    heads=SMALL,
    width=SMALL,
    points=SMALL,
    spread=st.floats(0, 1e4),
)
def test_key_aware_equals_definition_whatever_the_sizes(backend, shapes, **sizes):
    arguments = key_aware_inputs(shapes, **sizes)
    found = key_aware_deformable_attention(*arguments, backend=backend)
    torch.testing.assert_close(found, literal_key_aware(*arguments))


@pytest.mark.parametrize("backend", available_backends())
def test_key_aware_gradients(backend):
    query, value, shapes, locations = key_aware_inputs([(3, 5), (2, 2)], spread=0.3)
    tensors = [tensor.requires_grad_() for tensor in (query, value, locations)]
    assert torch.autograd.gradcheck(
        lambda q, v, x: key_aware_deformable_attention(q, v, shapes, x, backend=backend), tensors
    )


@pytest.mark.parametrize("shapes", TINY, ids=str)
@pytest.mark.parametrize(("queries", "heads", "points"), [(1, 8, 4), (5, 8, 4), (3, 1, 1)])
def test_key_aware_gradients_on_tiny_maps(shapes, queries, heads, points):
    arguments = key_aware_inputs(shapes, queries=queries, heads=heads, points=points, spread=0.3)
    tensors = [argument.requires_grad_() for argument in arguments if torch.is_tensor(argument)]
    expected, found = (
        torch.autograd.grad(
            key_aware_deformable_attention(*arguments, backend=backend).square().sum(), tensors
        )
        for backend in ("reference", "embedding_bag")
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", available_backends())
def test_large_logits_do_not_overflow(backend):
    query, value, shapes, locations = key_aware_inputs([(3, 5), (2, 2)], spread=0.1)
    query, value, locations = 1e4 * query.float(), value.float(), locations.float()
    tensors = [tensor.requires_grad_() for tensor in (query, value, locations)]
    found = key_aware_deformable_attention(query, value, shapes, locations, backend=backend)
    expected = literal_key_aware(query, value, shapes, locations)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(found.sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_key_aware_places_that_are_no_numbers_stay_with_their_query(wrong, backend):
    query, value, shapes, locations = key_aware_inputs([(3, 5), (2, 2)], batch=1)
    right = key_aware_deformable_attention(query, value, shapes, locations, backend=backend)
    locations[0, 1, 0, 0, 0, 0] = wrong
    found = key_aware_deformable_attention(query, value, shapes, locations, backend=backend)
    width = value.shape[3]
    # All weights of the head depend on each of its keys.
    assert found[0, 1, :width].isnan().all()
    found[0, 1, :width] = right[0, 1, :width]
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("backend", available_backends())
def test_key_aware_in_half_precision(backend):
    query, value, shapes, locations = key_aware_inputs([(40, 60)], queries=50, spread=0.2)
    expected = key_aware_deformable_attention(query, value, shapes, locations, backend=backend)
    # Under autocast queries and values are rounded; locations keep their precision.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = key_aware_deformable_attention(
            query.float(), value.float(), shapes, locations.float(), backend=backend
        )
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", available_backends())
def test_key_aware_sums_are_rounded_once(backend, dtype):
    query, value, shapes, locations = key_aware_inputs([(9, 6), (4, 3)], width=5, spread=0.2)
    query, value, locations = query.to(dtype), value.to(dtype), locations.float()
    found = key_aware_deformable_attention(query, value, shapes, locations, backend=backend)
    expected = literal_key_aware(query.double(), value.double(), shapes, locations.double())
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=1e-5)


def test_key_aware_operator_is_registered():
    operator = torch.ops.proscale.key_aware_deformable_attention.default
    query, value, shapes, locations = key_aware_inputs([(3, 5), (2, 2)], spread=0.3)
    sizes = [n for shape in shapes for n in shape]
    tensors = [tensor.requires_grad_() for tensor in (query, value, locations)]
    torch.library.opcheck(operator, (*tensors[:2], sizes, tensors[2], "embedding_bag"))


def test_wrong_query_is_named():
    query, value, shapes, locations = key_aware_inputs([(3, 5)])
    with pytest.raises(
        ValueError, match=r"query has shape \(2, 3, 2, 3\): expected \(2, 3, 2, 4\)"
    ):
        key_aware_deformable_attention(query[..., :3], value, shapes, locations)
    with pytest.raises(ValueError, match=r"value holds 15 tokens, .*make 16"):
        key_aware_deformable_attention(query, value, [(4, 4)], locations)
    with pytest.raises(ValueError, match=r"backend is 'fast': expected reference, embedding_bag"):
        key_aware_deformable_attention(query, value, shapes, locations, backend="fast")
