"""Who serves which call, and that nothing is slow in silence."""

import logging
from typing import get_args

import pytest
import torch

from cascadevl.ops.formats import FORMATS, Kind
from cascadevl.ops.native import linear as native
from cascadevl.ops.native import serve
from cascadevl.ops.quantize import dequantize, linear, quantize
from cascadevl.ops.triton import linear as gpu

CPU = torch.device("cpu")


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    serve._say_slow.cache_clear()
    yield
    serve._say_slow.cache_clear()


def test_the_table_has_every_format_for_cpus_from_the_first_row_on():
    assert {kind for kind, device in serve.TABLE if device == "cpu"} == set(get_args(Kind))
    assert all(min(rows) == 1 for rows in serve.TABLE.values())


def test_the_row_that_begins_last_serves(monkeypatch):
    monkeypatch.setitem(serve.TABLE, ("int8", "cpu"), {1: "native", 64: "dequantised"})
    chosen = [serve.choose(FORMATS["int8"], CPU, rows) for rows in (0, 1, 63, 64, 1000)]
    assert chosen == ["native", "native", "native", "dequantised", "dequantised"]


def test_what_the_table_lacks_is_dequantised():
    assert serve.choose(FORMATS["int8"], torch.device("meta"), 1) == "dequantised"


def test_gradients_go_through_the_rounded_weights():
    quantized, x = quantize(torch.randn(8, 32), FORMATS["int4-g32"]), torch.randn(3, 32, requires_grad=True)
    weight = serve.prepare(quantized, None) or quantized
    serve.linear(x, weight, None).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], dequantize(quantized).sum(0))
    with torch.no_grad():
        assert torch.equal(serve.linear(x, weight, None), serve.linear(x.detach(), weight, None))


def test_without_a_compiler_it_is_right_and_says_so_once(without_compiler, caplog):
    caplog.set_level(logging.WARNING, logger="cascadevl")
    quantized, x, bias_F = quantize(torch.randn(8, 32), FORMATS["int8"]), torch.randn(3, 32), torch.randn(8)
    assert serve.prepare(quantized, bias_F) is None
    assert serve.prepare(quantized, bias_F) is None
    assert torch.equal(serve.linear(x, quantized, bias_F), linear(x, quantized, bias_F))
    (record,) = caplog.records
    assert "int8 weights on this cpu" in record.message


def test_rows_too_long_for_32_bits_are_not_the_kernels(caplog):
    serve._say_slow.cache_clear()
    quantized = quantize(torch.ones(1, native.MAX_INPUTS + 1), FORMATS["int8"])
    assert serve.prepare(quantized, None) is None


def test_on_a_gpu_the_table_has_every_format_too_and_what_triton_packed_comes_back():
    assert all(serve.choose(FORMATS[name], torch.device("cuda"), 1) == "triton" for name in FORMATS)
    for name in FORMATS:
        quantized = quantize(torch.randn(8, 128), FORMATS[name])
        packed, x = gpu.pack(quantized, None), torch.randn(3, 128)
        assert torch.equal(serve.plain(packed).quants.float(), quantized.quants.float())
        # On a device that its kernel does not know it is still right.
        assert torch.equal(serve.linear(x, packed, None), linear(x, quantized))
