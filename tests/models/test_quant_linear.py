"""QuantLinear: stands where a Linear stood, saves plain tensors, loads them again."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from cascadevl.core.errors import ConfigError
from cascadevl.core.native import COMPILERS
from cascadevl.models.quant_linear import QuantLinear, cut, quantize_linears
from cascadevl.ops.formats import FORMATS, Quantized
from cascadevl.ops.quantize import dequantize, linear_dynamic, quantize

every_format = pytest.mark.parametrize("name", FORMATS)


def small_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(128, 256), nn.SiLU(), nn.Linear(256, 10, bias=False))


@every_format
def test_it_computes_what_its_rounded_weight_says(name):
    linear, x = nn.Linear(128, 20), torch.randn(2, 3, 128)
    layer = QuantLinear.of(linear, FORMATS[name])
    assert (layer.in_features, layer.out_features) == (128, 20)
    expected = x.flatten(0, 1) @ dequantize(quantize(linear.weight, FORMATS[name])).T + linear.bias
    with torch.inference_mode():
        torch.testing.assert_close(layer(x).flatten(0, 1), expected, rtol=0.02, atol=0.02)
        torch.testing.assert_close(layer.dequantized()(x).flatten(0, 1), expected)


def test_the_kernel_serves_it():
    layer = QuantLinear.of(nn.Linear(64, 20), FORMATS["int4-g64"])
    if not any(map(shutil.which, COMPILERS)) or os.environ.get("CASCADEVL_NATIVE") == "0":
        pytest.skip("no C compiler here, or none wanted")
    x_TD = torch.randn(3, 64)
    assert torch.equal(layer(x_TD), linear_dynamic(x_TD, layer.quantized, layer._tensors()["bias"]))


@every_format
def test_saved_then_loaded_it_gives_the_same_bits(name):
    model, other, x = small_model(), small_model(), torch.randn(4, 128)
    for each in (model, other):
        quantize_linears(each, lambda _: True, FORMATS[name])
    stored = load(save(model.state_dict()))
    assert {"0.quants", "0.scales", "0.bias", "2.quants", "2.scales"} <= set(stored)
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(stored)
    assert torch.equal(model(x), other(x))


@every_format
def test_it_is_made_of_saved_tensors(name):
    layer = QuantLinear.of(nn.Linear(128, 6), FORMATS[name])
    stored = layer.state_dict()
    again = QuantLinear(
        Quantized(FORMATS[name], stored["quants"], stored["scales"], stored.get("zeros")), stored["bias"]
    )
    x = torch.randn(2, 128)
    assert torch.equal(layer(x), again(x))


def test_loading_names_what_is_missing_stray_or_of_another_shape():
    layer = QuantLinear.of(nn.Linear(64, 6), FORMATS["int8"])
    stored = layer.state_dict()
    with pytest.raises(RuntimeError, match=r'Missing key.*"scales"'):
        layer.load_state_dict({name: stored[name] for name in ("quants", "bias")})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"weight"'):
        layer.load_state_dict({**stored, "weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="quants has the shape"):
        layer.load_state_dict({**stored, "quants": stored["quants"][:3]})


def test_only_the_selected_layers_are_replaced():
    model = small_model()
    assert quantize_linears(model, lambda name: name == "2", FORMATS["int8"]) == ["2"]
    assert type(model[0]) is nn.Linear
    assert isinstance(model[2], QuantLinear)


def test_nothing_selected_is_an_error():
    with pytest.raises(ConfigError, match="nothing would be quantised"):
        quantize_linears(small_model(), lambda _: False, FORMATS["int8"])


def test_a_width_that_does_not_fit_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 4))
    with pytest.raises(ConfigError, match="64 inputs"):
        quantize_linears(model, lambda _: True, FORMATS["int4-g128"])
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


def test_outputs_that_share_a_scale_are_not_parted():
    weight = quantize(torch.randn(300, 256), FORMATS["fp8-blocks"])
    for start, rows in ((0, 128), (128, 128), (128, 172), (256, 44)):
        part = cut(weight, start, rows)
        assert part is not None and torch.equal(dequantize(part), dequantize(weight)[start : start + rows])
    assert cut(weight, 64, 128) is None and cut(weight, 64, 236) is None and cut(weight, 0, 64) is None
