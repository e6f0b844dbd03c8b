"""Formats of few bits: by hand, by their bounds, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadevl.core.errors import CheckpointError, ConfigError
from cascadevl.ops.formats import FORMATS, Format, Quantized, join_nibbles, split_nibbles
from cascadevl.ops.quantize import E2M1, dequantize, linear, linear_dynamic, quantize, quantize_rows

every_format = pytest.mark.parametrize("name", FORMATS)


def rows_like(kind: str, outputs: int, width: int, seed: int) -> torch.Tensor:
    """Weights as they come, and the ones at the edge."""
    generator = torch.Generator().manual_seed(seed)
    weight_FD = torch.randn(outputs, width, generator=generator)
    if kind == "zeros":
        weight_FD[0] = 0
    elif kind == "outlier":
        weight_FD[0, 3] = 1e5
    elif kind == "tiny":
        weight_FD *= 1e-7
    elif kind == "denormal":
        weight_FD *= 1e-41
    elif kind == "positive":
        weight_FD.abs_()
    elif kind == "scales":
        weight_FD *= torch.logspace(-6, 4, outputs)[:, None]
    return weight_FD


def half_steps(quantized: Quantized) -> torch.Tensor:
    """The most that rounding to nearest may change each weight."""
    format, (outputs, width) = quantized.format, quantized.shape
    scales = quantized.scales.float()
    if format.kind == "mxfp4":
        scales = 2.0 ** (scales - 127)
    scales = scales.repeat_interleave(format.outputs, 0)[:outputs]
    scales = scales.repeat_interleave(format.group or width, 1)[:, :width]
    weight_FD = dequantize(quantized).abs()
    if format.kind == "fp8":  # three bits behind the point: half of the last one, or of the least step
        return torch.maximum(weight_FD / 16 * 1.07, scales * 2**-10)
    if format.kind == "mxfp4":  # the steps are 0.5 up to 2, then 1 up to 4, then 2; the wider neighbour counts
        return scales * torch.where(weight_FD < 2 * scales, 0.25, torch.where(weight_FD < 4 * scales, 0.5, 1.0))
    return scales / 2


@every_format
@pytest.mark.parametrize("kind", ["plain", "zeros", "outlier", "tiny", "denormal", "positive", "scales"])
def test_no_weight_moves_by_more_than_half_a_step(name, kind):
    weight_FD = rows_like(kind, 130, 256, seed=0)
    quantized = quantize(weight_FD, FORMATS[name])
    error_FD = (dequantize(quantized) - weight_FD).abs()
    # Numbers under 1e-38 lose digits of their own in fp32.
    assert (error_FD <= half_steps(quantized) * (1 + 1e-4) + weight_FD.abs() * 1e-6 + 2e-38).all()


@every_format
@settings(max_examples=15, deadline=None)
@given(groups=st.integers(1, 3), outputs=st.integers(1, 140), power=st.integers(-12, 4), seed=st.integers(0, 99))
def test_what_a_format_can_say_it_says_again(name, groups, outputs, power, seed):
    generator = torch.Generator().manual_seed(seed)
    weight_FD = torch.randn(outputs, 128 * groups, generator=generator) * 2.0**power
    once = dequantize(quantize(weight_FD, FORMATS[name]))
    assert once.isfinite().all() and once.shape == weight_FD.shape
    error = (once - weight_FD).norm() / weight_FD.norm()
    assert error < (0.02 if FORMATS[name].kind == "int8" else 0.04 if FORMATS[name].kind == "fp8" else 0.2)
    again = dequantize(quantize(once, FORMATS[name]))
    # An fp16 scale is rounded up, and may come out a step higher the second time.
    torch.testing.assert_close(again, once, rtol=1e-6, atol=float(half_steps(quantize(once, FORMATS[name])).max()))


def test_int8_by_hand():
    quantized = quantize(torch.tensor([[1.27, -0.5, 0.004, 0.006], [0.0, 0.0, 0.0, 0.0]]), FORMATS["int8"])
    assert quantized.quants.tolist() == [[127, -50, 0, 1], [0, 0, 0, 0]]
    torch.testing.assert_close(quantized.scales, torch.tensor([[0.01], [0.0]]))


def test_int4_by_hand():
    weight_FD = torch.tensor([[7.0, -7.0, 3.0, 0.4] + [0.0] * 28])
    quantized = quantize(weight_FD, FORMATS["int4-g32"])
    assert split_nibbles(quantized.quants)[0, :5].tolist() == [15, 1, 11, 8, 8]
    assert quantized.scales.tolist() == [[1.0]]


def test_int4_with_zeros_spends_all_sixteen_levels():
    weight_FD = torch.tensor([[12.0, -3.0, 0.0, 5.0] + [0.0] * 28])
    quantized = quantize(weight_FD, FORMATS["int4-g32-zeros"])
    assert quantized.zeros is not None
    assert (quantized.scales.tolist(), quantized.zeros.tolist()) == ([[1.0]], [[3]])
    assert torch.equal(dequantize(quantized), weight_FD)


def test_mxfp4_says_its_sixteen_numbers_exactly():
    weight_FD = torch.tensor([*E2M1, *E2M1]).view(1, 32) * 2.0**-9
    quantized = quantize(weight_FD, FORMATS["mxfp4"])
    assert quantized.scales.tolist() == [[127 - 9]]
    assert split_nibbles(quantized.quants)[0, :16].tolist() == list(range(16))
    assert torch.equal(dequantize(quantized), weight_FD)


def test_half_of_the_least_mxfp4_scale_is_a_normal_number():
    """Kernels halve scales, and processors may take what is smaller for zero."""
    least = float(torch.finfo(torch.float32).tiny)
    for size in (1e-36, 1e-38, 1e-41, 0.0):
        scales = quantize(torch.full((1, 32), size), FORMATS["mxfp4"]).scales
        assert 2.0 ** (int(scales.min()) - 127) / 2 >= least


def test_mxfp4_as_gpt_oss_stores_it():
    blocks_FGB = torch.randint(0, 256, (3, 2, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scales_FG = torch.tensor([[120, 127], [130, 0], [254, 1]], dtype=torch.uint8)
    expected = torch.empty(3, 64, dtype=torch.float64)
    for row, group, byte in torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(16)).tolist():
        for half in (0, 1):
            code = int(blocks_FGB[row, group, byte]) >> 4 * half & 15
            expected[row, group * 32 + byte * 2 + half] = E2M1[code] * 2.0 ** (int(scales_FG[row, group]) - 127)
    found = dequantize(Quantized(FORMATS["mxfp4"], blocks_FGB.flatten(1), scales_FG))
    assert torch.equal(found, expected.float())


def test_fp8_blocks_may_end_early():
    weight_FD = torch.randn(130, 200, generator=torch.Generator().manual_seed(0))
    weight_FD[129, 199] = 100
    quantized = quantize(weight_FD, FORMATS["fp8-blocks"])
    assert quantized.scales.shape == (2, 2)
    assert quantized.scales.argmax() == 3
    torch.testing.assert_close(dequantize(quantized)[:128, :128], weight_FD[:128, :128], rtol=1 / 16, atol=1e-4)


def test_nibbles_join_and_split():
    codes_FD = torch.arange(32, dtype=torch.uint8).view(2, 16) % 16
    assert join_nibbles(codes_FD)[0, 0] == 0x10
    assert torch.equal(split_nibbles(join_nibbles(codes_FD)), codes_FD)


def test_bits_for_each_weight():
    weight_FD = torch.randn(256, 256)
    bits = {name: quantize(weight_FD, format).num_bytes * 8 / weight_FD.numel() for name, format in FORMATS.items()}
    assert bits["int4-g32"] == 4.5
    assert bits["int4-g64-zeros"] == 4 + 24 / 64
    assert bits["mxfp4"] == 4.25
    assert bits["int8"] == bits["fp8"] == 8 + 32 / 256


@every_format
def test_linear_is_a_product_with_the_rounded_weight(name):
    weight_FD, x = torch.randn(20, 128), torch.randn(2, 3, 128, requires_grad=True)
    quantized, bias_F = quantize(weight_FD, FORMATS[name]), torch.randn(20)
    out = linear(x, quantized, bias_F)
    torch.testing.assert_close(out, F.linear(x, dequantize(quantized), bias_F))
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0, 0], dequantize(quantized).sum(0))


@every_format
def test_activations_of_8_bits_change_little(name):
    x_TD, quantized = torch.randn(5, 256), quantize(torch.randn(40, 256), FORMATS[name])
    exact = linear(x_TD, quantized)
    assert (linear_dynamic(x_TD, quantized) - exact).norm() / exact.norm() < 0.015


def test_rows_are_rounded_by_themselves():
    x_TD = torch.tensor([[1.27, -0.635, 0.015], [0, 0, 0], [1, float("nan"), 2], [float("inf"), 0, 1], [1e-44, 0, 0]])
    quants_TD, scales_T1 = quantize_rows(x_TD, 3)
    assert quants_TD[:4].tolist() == [[127, -64, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert scales_T1[1] == 0
    assert scales_T1[2:4].isnan().all()
    assert quants_TD[4].abs().max() <= 127


def test_a_large_activation_spoils_its_own_group_only():
    quants_TD, scales_TG = quantize_rows(torch.tensor([[1.27, -0.635, 500.0, 1.0, 0.0127]]), 2)
    assert quants_TD.tolist() == [[127, -64, 127, 0, 127]]
    torch.testing.assert_close(scales_TG, torch.tensor([[0.01, 500 / 127, 0.0001]]))


def test_groups_that_would_not_be_full_are_refused():
    with pytest.raises(ConfigError, match=r"576 inputs cannot be cut into int4 groups of 128\. Groups of 64 fit"):
        quantize(torch.zeros(4, 576), FORMATS["int4-g128"])
    with pytest.raises(ConfigError, match="Use int8"):
        quantize(torch.zeros(4, 50), FORMATS["mxfp4"])


@every_format
def test_damaged_weights_are_refused(name):
    weight_FD = torch.zeros(2, 128)
    weight_FD[1, 5] = float("nan")
    with pytest.raises(CheckpointError, match="damaged"):
        quantize(weight_FD, FORMATS[name])


def test_only_matrices_can_be_quantised():
    with pytest.raises(ConfigError, match="matrices"):
        quantize(torch.zeros(3, 4, 5), FORMATS["int8"])


def test_weights_too_large_for_fp16_scales_are_refused():
    with pytest.raises(ConfigError, match="use int8"):
        quantize(torch.full((1, 32), 1e6), FORMATS["int4-g32"])


def test_formats_that_do_not_exist_are_refused():
    for make in (
        lambda: Format(kind="int8", group=48),
        lambda: Format(kind="int4"),
        lambda: Format(kind="mxfp4", group=32, zeros=True),
        lambda: Format(kind="fp8", outputs=128),
    ):
        with pytest.raises(ConfigError, match="no format we know"):
            make()


def test_tensors_that_do_not_fit_their_format_are_refused():
    whole = quantize(torch.randn(4, 64), FORMATS["int4-g32"])
    with pytest.raises(CheckpointError, match=r"has torch.uint8 and torch.float16 \(4, 2\)"):
        Quantized(whole.format, whole.quants, whole.scales[:, :1])
    with pytest.raises(CheckpointError, match="zeros"):
        Quantized(Format(kind="int4", group=32, zeros=True), whole.quants, whole.scales)
