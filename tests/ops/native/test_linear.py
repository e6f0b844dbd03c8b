"""linear.c on every set of instructions that this machine has, against plain torch, bit for bit."""

import ctypes
import os
import shutil

import pytest
import torch

from cascadevl.core.errors import CheckpointError
from cascadevl.core.hardware import cpu_flags
from cascadevl.core.native import COMPILERS
from cascadevl.ops.formats import FORMATS, Quantized
from cascadevl.ops.native import linear as native
from cascadevl.ops.native.library import pointer
from cascadevl.ops.quantize import linear_dynamic, quantize

MACHINES = {
    "native": (),
    "avx2": ("-mno-avx512f",),
    "any": ("-mno-avx2",),
}
"""Compiler flags that leave less and less of an x86 processor."""

every_format = pytest.mark.parametrize("name", FORMATS)

SHAPES = [(70, 256), (64, 128), (1, 640), (200, 128)]


@pytest.fixture(scope="module", params=MACHINES)
def library(request):
    if MACHINES[request.param] and not {"avx512f", "avx2"} & cpu_flags():
        pytest.skip("another processor has no such instructions to leave out")
    if not any(map(shutil.which, COMPILERS)) or os.environ.get("CASCADEVL_NATIVE") == "0":
        pytest.skip("no C compiler here, or none wanted")
    found = native.library(MACHINES[request.param])
    assert found, "linear.c does not compile"
    return found


def same(found: torch.Tensor, expected: torch.Tensor, name: str) -> bool:
    """Whole numbers leave no room; FP8 is summed in floats, in another order than torch's."""
    if FORMATS[name].kind == "fp8":
        return bool(torch.isclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())).all())
    return torch.equal(found, expected)


@every_format
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_are_those_of_the_oracle(library, name, shape):
    generator = torch.Generator().manual_seed(0)
    weight_FD = torch.randn(shape, generator=generator) * torch.rand(shape[0], 1, generator=generator)
    bias_F = torch.randn(shape[0], generator=generator)
    quantized = quantize(weight_FD, FORMATS[name])
    for bias in (bias_F, None):
        packed = native.pack(quantized, bias, library)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 97, 200):
            x_TD = torch.randn(rows, shape[1], generator=generator)
            assert same(native.linear(x_TD, packed), linear_dynamic(x_TD, quantized, bias), name), rows


@every_format
def test_a_row_does_not_depend_on_the_others(library, name):
    x_TD = torch.randn(150, 256)
    packed = native.pack(quantize(torch.randn(100, 256), FORMATS[name]), None, library)
    together = native.linear(x_TD, packed)
    for start in (0, 1, 95, 97, 149):
        for end in (start + 1, start + 2, start + 5, 150):
            assert torch.equal(native.linear(x_TD[start:end], packed), together[start:end])


@pytest.mark.parametrize("width", [1, 3, 31, 33, 147, 588])
@pytest.mark.parametrize("name", ["int8", "fp8", "fp8-blocks"])
def test_any_width_will_do_where_there_are_no_groups(library, name, width):
    quantized, x_TD = quantize(torch.randn(33, width), FORMATS[name]), torch.randn(5, width)
    packed = native.pack(quantized, None, library)
    assert same(native.linear(x_TD, packed), linear_dynamic(x_TD, quantized), name)


@every_format
def test_the_greatest_sums_do_not_overflow(library, name):
    """All weights and activations at their ends, of one sign and of both."""
    width = native.MAX_INPUTS if name == "int8" else 1024
    weight_FD = torch.ones(3, width)
    weight_FD[1] = -1
    weight_FD[2, ::2] = -1
    quantized = quantize(weight_FD, FORMATS[name])
    packed = native.pack(quantized, None, library)
    x_TD = torch.cat([weight_FD, -weight_FD])
    assert same(native.linear(x_TD, packed), linear_dynamic(x_TD, quantized), name)


@pytest.mark.parametrize("name", ["int4-g128", "int4-g128-zeros", "mxfp4"])
def test_every_code_and_scale_of_four_bits(library, name):
    generator = torch.Generator().manual_seed(0)
    whole = quantize(torch.randn(64, 256), FORMATS[name])
    quants = torch.randint(0, 256, whole.quants.shape, dtype=torch.uint8, generator=generator)
    x_TD = torch.randn(9, 256, generator=generator)
    x_TD[1], x_TD[2] = 1, -1
    if name == "mxfp4":
        scales = torch.arange(2, 2 + whole.scales.numel(), dtype=torch.int32).clamp(max=240).to(torch.uint8)
        scales = scales.view_as(whole.scales)
    else:
        scales = torch.linspace(-20, 10, whole.scales.numel()).exp2().half().view_as(whole.scales)
    zeros = None if whole.zeros is None else torch.arange(whole.zeros.numel()).to(torch.uint8).view_as(whole.zeros) & 15
    quantized = Quantized(whole.format, quants, scales, zeros)
    packed = native.pack(quantized, None, library)
    assert torch.equal(native.linear(x_TD, packed), linear_dynamic(x_TD, quantized))


def test_every_number_of_fp8(library):
    codes = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)
    quantized = Quantized(FORMATS["fp8"], codes[:, None].view(torch.float8_e4m3fn), torch.ones(len(codes), 1))
    found = native.linear(torch.ones(1, 1), native.pack(quantized, None, library))
    assert torch.equal(found[0], codes.view(torch.float8_e4m3fn).float())


def test_rows_that_are_zero_tiny_or_not_finite(library):
    x_TD = torch.randn(6, 64)
    x_TD[0], x_TD[1, 3], x_TD[2, 5], x_TD[3] = 0, float("nan"), float("-inf"), x_TD[3] * 1e-44
    x_TD[4, 0] = 1e30
    for name in ("int8", "int4-g32", "int4-g32-zeros", "mxfp4"):
        quantized = quantize(torch.randn(20, 64), FORMATS[name])
        found, expected = native.linear(x_TD, native.pack(quantized, None, library)), linear_dynamic(x_TD, quantized)
        assert found[1:3].isnan().all()
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@every_format
@pytest.mark.parametrize("shape", SHAPES)
def test_packing_loses_nothing(library, name, shape):
    quantized = quantize(torch.randn(shape), FORMATS[name])
    again = native.unpack(native.pack(quantized, None, library))
    for field, tensor in quantized.tensors().items():
        assert torch.equal(again.tensors()[field].float(), tensor.float()), field


def test_shapes_and_types_of_activations(library):
    packed = native.pack(quantize(torch.randn(10, 32), FORMATS["int8"]), None, library)
    x = torch.randn(2, 3, 32)
    assert native.linear(x, packed).shape == (2, 3, 10)
    assert native.linear(x[:0], packed).shape == (0, 3, 10)
    assert native.linear(x.bfloat16(), packed).dtype == torch.bfloat16
    turned = torch.randn(32, 4).T
    assert torch.equal(native.linear(turned, packed), native.linear(turned.contiguous(), packed))


def test_damaged_weights_are_refused(library):
    mxfp4 = quantize(torch.randn(4, 32), FORMATS["mxfp4"])
    mxfp4.scales[1, 0] = 255
    fp8 = quantize(torch.randn(4, 32), FORMATS["fp8"])
    fp8.quants.view(torch.uint8)[2, 2] = 0xFF
    int4 = quantize(torch.randn(4, 32), FORMATS["int4-g32"])
    int4.scales[0, 0] = float("inf")
    for quantized in (mxfp4, fp8, int4):
        with pytest.raises(CheckpointError, match="damaged"):
            native.pack(quantized, None, library)


def plainly(x_TD: torch.Tensor, weight_FD: torch.Tensor, bias_F: torch.Tensor | None, library) -> torch.Tensor:
    """With weights in fp32, as the decoder in C has them."""
    outputs, width = weight_FD.shape
    tensors = map(pointer, (weight_FD, None, None, bias_F))
    weight = native.Weight(native.PLAIN_KIND, outputs, width, 0, *tensors)
    out_TF = torch.empty(len(x_TD), outputs)
    assert library.c.linear(out_TF.data_ptr(), x_TD.contiguous().data_ptr(), len(x_TD), ctypes.byref(weight))
    return out_TF


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (16, 8), (70, 61), (130, 259), (64, 256)])
def test_plain_weights_of_any_shape_give_the_same_bits_in_any_company(library, shape):
    """One and two rows, some, and more than a block of 80 are computed in three ways."""
    weight_FD, bias_F, x_TD = torch.randn(shape), torch.randn(shape[0]), torch.randn(150, shape[1])
    together = plainly(x_TD, weight_FD, bias_F, library)
    exact = torch.nn.functional.linear(x_TD.double(), weight_FD.double(), bias_F.double())
    assert torch.allclose(together.double(), exact, rtol=1e-5, atol=1e-5 * shape[1] ** 0.5)
    for start, end in ((0, 1), (149, 150), (3, 5), (7, 10), (0, 8), (1, 10), (5, 21), (0, 79), (0, 81)):
        assert torch.equal(plainly(x_TD[start:end], weight_FD, bias_F, library), together[start:end])
    assert torch.equal(plainly(x_TD, weight_FD, None, library), plainly(x_TD, weight_FD, bias_F * 0, library))


def test_each_sum_of_plain_weights_runs_along_the_inputs(library):
    """What is too small to be seen beside 1 counts only where it comes first."""
    x_TD = torch.ones(4, 17)
    weight_FD = torch.tensor([[1.0, *[2.0**-25] * 16], [*[2.0**-25] * 16, 1.0]])
    for rows in (1, 2, 4):
        assert plainly(x_TD[:rows], weight_FD, None, library).tolist() == [[1.0, 1 + 2.0**-21]] * rows
