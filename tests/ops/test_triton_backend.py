"""The Triton backend against the reference: on a GPU, and on any machine in Triton's interpreter.

Triton decides when it is imported whether kernels are compiled or interpreted. The tests therefore
run this file a second time, in a process of their own where `TRITON_INTERPRET=1`; here, the cases
use the GPU or are skipped.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from proscale.ops import triton_backend
from proscale.ops.deformable_attention import (
    reference_deformable_attention,
    reference_key_aware_attention,
)

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
CASES = {  # shapes, batch, queries, heads, width, points
    "one level": ([(3, 5)], 2, 3, 2, 4, 2),
    "one cell": ([(1, 1)], 1, 5, 1, 8, 1),
    "rows and columns": ([(1, 4), (5, 1)], 2, 2, 3, 5, 3),
    "pyramid": ([(2, 3), (4, 6), (7, 11)], 2, 4, 2, 6, 4),
    "several programs": ([(3, 3), (2, 5)], 2, 19, 2, 32, 4),
    "more than a tile": ([(2, 2)], 1, 2, 1, 300, 4),
}

kernels_run = pytest.mark.skipif(
    not triton_backend.is_available(), reason="needs Triton, and a GPU or TRITON_INTERPRET=1"
)


def tensors(case, *, spread=0.4, dtype=torch.float32, places=None):
    """Arguments of the operator; locations and weights in the dtype `places` if that is given."""
    shapes, batch, queries, heads, width, points = CASES[case]
    generator = torch.Generator().manual_seed(0)
    tokens, levels = sum(height * width for height, width in shapes), len(shapes)
    value = torch.randn(batch, tokens, heads, width, generator=generator)
    locations = torch.randn(batch, queries, heads, levels, points, 2, generator=generator)
    weights = torch.rand(batch, queries, heads, levels, points, generator=generator)
    places = places or dtype
    locations = (locations * spread + 0.5).to(DEVICE, places)
    return value.to(DEVICE, dtype), shapes, locations, weights.to(DEVICE, places)


def double(arguments):
    return [a.double() if torch.is_tensor(a) else a for a in arguments]


def expected_gradients(grad_output, arguments):
    value, shapes, locations, weights = double(arguments)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    output = reference_deformable_attention(value, shapes, locations, weights)
    return torch.autograd.grad(output, inputs, grad_output.double())


def key_aware_tensors(case, **kinds):
    """Arguments of the key-aware operator."""
    value, shapes, locations, _ = tensors(case, **kinds)
    generator = torch.Generator().manual_seed(2)
    query = 2 * torch.randn(*locations.shape[:3], value.shape[3], generator=generator)
    return query.to(value), value, shapes, locations


def expected_key_aware_gradients(grad_output, arguments):
    query, value, shapes, locations = double(arguments)
    inputs = [tensor.requires_grad_() for tensor in (query, value, locations)]
    output = reference_key_aware_attention(query, value, shapes, locations)
    return torch.autograd.grad(output, inputs, grad_output.double())


def test_available_with_triton_and_a_gpu_or_the_interpreter(monkeypatch):
    def available(*, triton, gpu, interpret):
        monkeypatch.setattr(triton_backend, "find_spec", {"triton": triton}.get)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
        return triton_backend.is_available()

    assert available(triton=object(), gpu=True, interpret="0")
    assert available(triton=object(), gpu=False, interpret="1")
    assert not available(triton=object(), gpu=False, interpret="0")
    assert not available(triton=None, gpu=True, interpret="1")


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter's process")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@kernels_run
@pytest.mark.parametrize("spread", [0.4, 30], ids=["near", "far outside"])
@pytest.mark.parametrize("case", CASES)
def test_equals_reference(case, spread):
    arguments = tensors(case, spread=spread)
    output = triton_backend.forward(*arguments)
    assert output.dtype == torch.float32
    expected = reference_deformable_attention(*double(arguments))
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)


@kernels_run
@pytest.mark.parametrize("spread", [0.4, 30], ids=["near", "far outside"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_reference(case, spread):
    arguments = tensors(case, spread=spread)
    output = triton_backend.forward(*arguments)
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    gradients = triton_backend.backward(grad_output, *arguments)
    for gradient, expected in zip(
        gradients, expected_gradients(grad_output, arguments), strict=True
    ):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-4)


@kernels_run
@pytest.mark.parametrize("spread", [0.4, 30], ids=["near", "far outside"])
@pytest.mark.parametrize("case", CASES)
def test_key_aware_equals_reference(case, spread):
    arguments = key_aware_tensors(case, spread=spread)
    output = triton_backend.key_aware_forward(*arguments)
    assert output.dtype == torch.float32
    expected = reference_key_aware_attention(*double(arguments))
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)


@kernels_run
@pytest.mark.parametrize("spread", [0.4, 30], ids=["near", "far outside"])
@pytest.mark.parametrize("case", CASES)
def test_key_aware_gradients_equal_reference(case, spread):
    arguments = key_aware_tensors(case, spread=spread)
    output = triton_backend.key_aware_forward(*arguments)
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    gradients = triton_backend.key_aware_backward(grad_output, *arguments)
    for gradient, expected in zip(
        gradients, expected_key_aware_gradients(grad_output, arguments), strict=True
    ):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=2e-4)


@kernels_run
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_key_aware_half_precision(dtype):
    arguments = key_aware_tensors("pyramid", dtype=dtype, places=torch.float32)
    output = triton_backend.key_aware_forward(*arguments)
    assert output.dtype == dtype
    rounding = torch.finfo(dtype).eps
    expected = reference_key_aware_attention(*double(arguments))
    torch.testing.assert_close(output.double(), expected, rtol=rounding, atol=1e-5)
    gradients = triton_backend.key_aware_backward(output, *arguments)
    for gradient, expected, tensor in zip(
        gradients,
        expected_key_aware_gradients(output, arguments),
        (*arguments[:2], arguments[3]),
        strict=True,
    ):
        assert gradient.dtype == tensor.dtype
        torch.testing.assert_close(gradient.double(), expected, rtol=rounding, atol=1e-4)


@kernels_run
@pytest.mark.parametrize("places", [torch.float32, None], ids=["fp32 places", "half places"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, places):
    """Results are off by no more than their rounding: inputs are exact, and sums fp32."""
    arguments = tensors("pyramid", dtype=dtype, places=places)
    output = triton_backend.forward(*arguments)
    assert output.dtype == dtype
    rounding = torch.finfo(dtype).eps
    expected = reference_deformable_attention(*double(arguments))
    torch.testing.assert_close(output.double(), expected, rtol=rounding, atol=1e-5)
    gradients = triton_backend.backward(output, *arguments)
    for gradient, expected, tensor in zip(
        gradients,
        expected_gradients(output, arguments),
        (arguments[0], *arguments[2:]),
        strict=True,
    ):
        assert gradient.dtype == tensor.dtype
        torch.testing.assert_close(gradient.double(), expected, rtol=rounding, atol=1e-4)


@kernels_run
def test_doubles_are_summed_as_doubles():
    arguments = tensors("pyramid", dtype=torch.float64)
    output = triton_backend.forward(*arguments)
    torch.testing.assert_close(output, reference_deformable_attention(*arguments))
    gradients = triton_backend.backward(output, *arguments)
    torch.testing.assert_close(gradients, expected_gradients(output, arguments))


@kernels_run
def test_any_strides():
    arguments = tensors("pyramid")
    grad_output = torch.ones((), device=DEVICE).expand(2, 4, 12)
    strided = [
        a.transpose(0, 1).contiguous().transpose(0, 1) if torch.is_tensor(a) else a
        for a in arguments
    ]
    assert not any(a.is_contiguous() for a in strided if torch.is_tensor(a))
    torch.testing.assert_close(triton_backend.forward(*strided), triton_backend.forward(*arguments))
    torch.testing.assert_close(
        triton_backend.backward(grad_output, *strided),
        triton_backend.backward(grad_output.contiguous(), *arguments),
    )


@kernels_run
def test_key_aware_any_strides_and_doubles():
    arguments = key_aware_tensors("pyramid", dtype=torch.float64)
    strided = [
        a.transpose(0, 1).contiguous().transpose(0, 1) if torch.is_tensor(a) else a
        for a in arguments
    ]
    output = triton_backend.key_aware_forward(*strided)
    torch.testing.assert_close(output, reference_key_aware_attention(*arguments))
    gradients = triton_backend.key_aware_backward(output, *strided)
    torch.testing.assert_close(gradients, expected_key_aware_gradients(output, arguments))


@kernels_run
@pytest.mark.parametrize("dimension", ["batch", "queries"])
def test_nothing_to_do(dimension):
    value, shapes, locations, weights = tensors("pyramid")
    if dimension == "batch":
        value, locations, weights = value[:0], locations[:0], weights[:0]
    else:
        locations, weights = locations[:, :0], weights[:, :0]
    output = triton_backend.forward(value, shapes, locations, weights)
    assert output.shape == (value.shape[0], locations.shape[1], 12)
    gradients = triton_backend.backward(output, value, shapes, locations, weights)
    assert [g.shape for g in gradients] == [value.shape, locations.shape, weights.shape]
    assert not gradients[0].any()
    query = value.new_zeros(*locations.shape[:3], value.shape[3])
    output = triton_backend.key_aware_forward(query, value, shapes, locations)
    gradients = triton_backend.key_aware_backward(output, query, value, shapes, locations)
    assert [g.shape for g in gradients] == [query.shape, value.shape, locations.shape]


@kernels_run
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_location_that_is_no_number_is_not_hidden(wrong):
    value, shapes, locations, weights = tensors("one level")
    locations[0, 1, 0, 0, 0, 0] = wrong
    bad = triton_backend.forward(value, shapes, locations, weights).isnan()
    assert bad[0, 1, :4].all()
    assert bad.sum() == 4


@kernels_run
def test_backward_says_that_it_is_not_deterministic():
    arguments = tensors("one level")
    grad_output = triton_backend.forward(*arguments)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="Triton backend sums in no fixed order"):
            triton_backend.backward(grad_output, *arguments)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match="Triton backend sums in no fixed order"):
            triton_backend.backward(grad_output, *arguments)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(
    "name",
    [
        "forward_kernel",
        "backward_kernel",
        "key_aware_forward_kernel",
        "key_aware_backward_kernel",
    ],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_compiles_to_vector_instructions(name, dtype, tmp_path, monkeypatch):
    """For a GPU that need not be there: the interpreter accepts more than the compiler does."""
    pytest.importorskip("triton", minversion="3.3", reason="the compiler's interface differs")
    from triton import compile as compile_kernel
    from triton import language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from proscale.ops import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(triton_kernels, name)
    constants = {"HEADS": 8, "DIM": 32, "LEVELS": 3, "POINTS": 4, "ACCUMULATE": tl.float32}
    constants |= {"BLOCK_N": 8, "BLOCK_P": 4, "BLOCK_D": 32}
    types = {"levels": "*i32", "tokens": "i32", "queries": "i32", "grad_value": "*fp32"}
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, f"*{dtype}")
        for argument in kernel.arg_names
    }
    # As at a call: PyTorch's tensors begin at multiples of 16 bytes.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, type_ in enumerate(signature.values())
        if type_.startswith("*")
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    compiled = compile_kernel(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert "ld.global.v4" in compiled.asm["ptx"]
    if name.endswith("backward_kernel"):
        assert "atom.global.gpu.relaxed.add.v4.f32" in compiled.asm["ptx"]
