"""Tiles give what the whole gives; folded norms the same function in fewer passes."""

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from torch import nn
from torch.nn import functional as F

from proscale.ops import fused
from proscale.ops.fused import (
    FoldedConv2d,
    feed_forward,
    fold_frozen_norms,
    map_rows,
    max_pool_3x3,
    reduce_bilinear,
)
from proscale.ops.tracing import reference_operators


@pytest.mark.parametrize("shape", [(2, 7, 4), (1, 3, 4), (5, 4)])
def test_feed_forward_of_blocks_of_tokens(shape, monkeypatch):
    monkeypatch.setattr(fused, "BLOCK_TOKENS", 3)
    torch.manual_seed(0)
    linear1, linear2, tokens = nn.Linear(4, 8), nn.Linear(8, 4), torch.randn(shape)
    layers = (linear1, linear2, nn.Identity())
    with torch.no_grad():
        blocks = feed_forward(tokens, *layers)
    whole = feed_forward(tokens, *layers)
    assert whole.requires_grad
    torch.testing.assert_close(blocks, linear2(linear1(tokens).relu()))
    torch.testing.assert_close(blocks, whole)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(4, 6), (2, 3), (8, 3), (5, 4), (3, 5)])
def test_bilinear_reduction(size, layout):
    maps = torch.randn(2, 3, 16, 24).contiguous(memory_format=layout)
    expected = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(reduce_bilinear(maps, size), expected)
    with reference_operators():
        assert torch.equal(reduce_bilinear(maps, size), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (2, 2), (6, 5), (7, 5)])
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_max_pooling_of_blocks_of_rows(size, rows, monkeypatch):
    monkeypatch.setattr(fused, "POOL_NUMBERS", rows * size[1] * 3)
    maps = torch.randn(2, 3, *size, generator=torch.manual_seed(0))
    expected = F.max_pool2d(maps, 3, stride=1, padding=1)
    assert torch.equal(max_pool_3x3(maps), expected)
    with torch.no_grad():
        assert torch.equal(max_pool_3x3(maps), expected)


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_rows_see_their_neighbours(rows, monkeypatch):
    monkeypatch.setattr(fused, "ROWS_BYTES", rows * 2 * 4 * 3 * 4)
    tokens = torch.randn(2, 7 * 4, 3, generator=torch.manual_seed(0))
    sizes = []

    def pool(strip, size, wanted):
        sizes.append(size)
        maps = strip.unflatten(1, size).permute(0, 3, 1, 2)
        pooled = F.max_pool2d(maps, 3, stride=1, padding=1)[:, :, wanted]
        return pooled.permute(0, 2, 3, 1).flatten(1, 2)

    whole = map_rows(pool, tokens, (7, 4), hidden=3, halo=1)
    assert sizes == [(7, 4)]  # autograd is on
    with torch.no_grad():
        assert torch.equal(map_rows(pool, tokens, (7, 4), hidden=3, halo=1), whole)
    assert len(sizes) == 1 + -(-7 // rows)


def network(norm="FrozenBN", bias=False):
    torch.manual_seed(0)
    convolution = Conv2d(
        6, 8, 3, stride=2, padding=1, groups=2, bias=bias, norm=get_norm(norm, 8), activation=F.relu
    )
    with torch.no_grad():
        for tensor in (convolution.norm.running_mean, convolution.norm.bias):
            tensor.normal_()
        for tensor in (convolution.norm.running_var, convolution.norm.weight):
            tensor.uniform_(0.5, 2)
    return nn.Sequential(convolution).double()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_outputs_and_gradients_are_those_of_the_two(bias, wants_gradient):
    apart, folded = network(bias=bias), network(bias=bias)
    fold_frozen_norms(folded)
    assert isinstance(folded[0], FoldedConv2d)
    image = torch.randn(2, 6, 9, 11, dtype=torch.float64, requires_grad=wants_gradient)
    results = []
    for model in (apart, folded):
        result = model(image)
        (result * torch.linspace(0, 1, result.numel()).view_as(result)).sum().backward()
        results.append([result, *(p.grad for p in model.parameters())])
        if wants_gradient:
            results[-1].append(image.grad)
            image.grad = None
    torch.testing.assert_close(*results)


def test_weights_keep_their_names_and_may_change():
    apart, folded = network(), network()
    fold_frozen_norms(folded)
    image = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    folded(image)
    changed = {name: tensor + 0.5 for name, tensor in apart.state_dict().items()}
    for model in (apart, folded):
        model.load_state_dict(changed)
    torch.testing.assert_close(folded(image), apart(image))
    assert [*folded.state_dict()] == [*apart.state_dict()]


def test_other_norms_stay_behind_their_convolutions():
    model = network("BN")
    fold_frozen_norms(model)
    assert type(model[0]) is Conv2d


def test_a_recording_has_the_operators_of_the_model():
    model = network()
    fold_frozen_norms(model)
    with torch.no_grad():
        trace = torch.jit.trace(model.eval(), torch.randn(1, 6, 5, 5, dtype=torch.float64))
    assert "aten::batch_norm" in str(trace.inlined_graph)
    assert isinstance(model[0].norm, FrozenBatchNorm2d)
