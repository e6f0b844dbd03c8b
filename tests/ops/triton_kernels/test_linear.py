"""The order of weights for linear_kernel.py, which needs no Triton: its arithmetic, and that it loses nothing."""

import pytest
import torch

from cascadevl.core.errors import CheckpointError
from cascadevl.ops.formats import FORMATS
from cascadevl.ops.quantize import quantize
from cascadevl.ops.triton.linear import pack, unpack


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(70, 256), (128, 128), (1, 640), (200, 384)])
def test_packing_loses_nothing(name, shape):
    quantized = quantize(torch.randn(shape), FORMATS[name])
    again = unpack(pack(quantized, None))
    for field, tensor in quantized.tensors().items():
        assert torch.equal(again.tensors()[field].float(), tensor.float()), field


@pytest.mark.parametrize("name", ["int8", "fp8", "fp8-blocks"])
@pytest.mark.parametrize("width", [1, 33, 588])
def test_any_width_will_do_where_there_are_no_groups(name, width):
    quantized = quantize(torch.randn(150, width), FORMATS[name])
    again = unpack(pack(quantized, None))
    assert torch.equal(again.quants.float(), quantized.quants.float())
    assert torch.equal(again.scales, quantized.scales)


def test_every_code_lies_where_the_formula_says():
    width = 96
    four, eight = (quantize(torch.randn(70, width), FORMATS[name]) for name in ("int4-g32", "fp8"))
    nibbles, codes = pack(four, None).quants.flatten(), pack(eight, None).quants.flatten()
    for f in range(70):
        for d in range(width):
            place = (f // 64 * (width // 32) + d // 32) * 64 + f % 64
            assert codes[place * 32 + d % 32] == eight.quants.view(torch.uint8)[f, d]
            byte = nibbles[place * 16 + d % 16]
            nibble = byte & 15 if d % 32 < 16 else byte >> 4
            stored = four.quants[f, d // 2]
            assert nibble == (stored >> 4 if d % 2 else stored & 15)


def test_damaged_weights_are_refused():
    mxfp4 = quantize(torch.randn(4, 32), FORMATS["mxfp4"])
    mxfp4.scales[1, 0] = 255
    fp8 = quantize(torch.randn(4, 32), FORMATS["fp8"])
    fp8.quants.view(torch.uint8)[2, 2] = 0xFF
    int4 = quantize(torch.randn(4, 32), FORMATS["int4-g32"])
    int4.scales[0, 0] = float("inf")
    for quantized in (mxfp4, fp8, int4):
        with pytest.raises(CheckpointError, match="damaged"):
            pack(quantized, None)
