"""Rounding that makes up for itself: by hand, never worse than to nearest, and what it cannot use."""

import pytest
import torch
from torch import Tensor

from cascadevl.core.errors import CheckpointError, ConfigError
from cascadevl.ops.formats import FORMATS
from cascadevl.ops.gptq import output_errors, quantize_compensated
from cascadevl.ops.quantize import dequantize, quantize

every_format = pytest.mark.parametrize("name", FORMATS)


def correlated(width: int, num_tokens: int = 400, seed: int = 0) -> Tensor:
    """Inputs of which a few directions make up most, and some are much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    few_TR = torch.randn(num_tokens, 8, generator=generator)
    x_TD = few_TR @ torch.randn(8, width, generator=generator) + 0.3 * torch.randn(
        num_tokens, width, generator=generator
    )
    return x_TD * torch.logspace(-1, 1, width)[torch.randperm(width, generator=generator)]


def hessian(x_TD: Tensor) -> Tensor:
    return x_TD.T @ x_TD / len(x_TD)


def weights(outputs: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(outputs, width, generator=torch.Generator().manual_seed(seed))


def test_two_inputs_by_hand() -> None:
    """Twice the same input: what the first weight was rounded up by, the second is moved down by."""
    weight = torch.zeros(1, 32)
    weight[0, :3] = torch.tensor([127.0, 0.4, 0.4])  # int8: a step is 1
    x = torch.zeros(2, 32)
    x[0, 0], x[1, 1:3] = 1.0, 1.0
    assert dequantize(quantize(weight, FORMATS["int8"]))[0, :3].tolist() == [127, 0, 0], "0.8 has become 0"
    rounded = dequantize(quantize_compensated(weight, hessian(x), FORMATS["int8"], damping=1e-4))
    assert rounded[0, 0] == 127
    assert sorted(rounded[0, 1:3].tolist()) == [0, 1], "0.4 is rounded to 0, and 0.8 to 1"


def test_the_paper_s_update_by_a_loop() -> None:
    """Equation 2: round one weight, move the others by -(w - q) / [H⁻¹]dd · [H⁻¹]d,: , leave it out of H, go on."""
    width = 70  # more than are moved together
    weight, x = weights(3, width), correlated(width)
    format, damping = FORMATS["int8"], 0.01
    hessian_DD = hessian(x)
    scale_F1 = quantize(weight, format).scales
    damped = hessian_DD.double() + damping * hessian_DD.diagonal().mean() * torch.eye(width)
    moved, expected, left = weight.double().clone(), torch.zeros(3, width), list(range(width))
    for d in damped.diagonal().argsort(descending=True).tolist():
        inverse = damped[left][:, left].inverse()
        at = left.index(d)
        expected[:, d] = ((moved[:, d] / scale_F1[:, 0]).round().clamp(-127, 127) * scale_F1[:, 0]).float()
        error_F = moved[:, d] - expected[:, d]
        moved[:, left] -= torch.outer(error_F, inverse[at] / inverse[at, at])
        left.remove(d)
    rounded = dequantize(quantize_compensated(weight, hessian_DD, format, damping=damping))
    differ = (rounded - expected).abs() > 1e-6
    assert differ.float().mean() < 0.02, "a weight halfway between two steps may fall to either side"


@every_format
def test_no_output_is_further_off_than_rounded_to_nearest(name: str) -> None:
    weight, x = weights(130, 256), correlated(256)
    format, hessian_DD = FORMATS[name], hessian(x)
    nearest, rounded = quantize(weight, format), quantize_compensated(weight, hessian_DD, format)
    before_F, after_F = (output_errors(weight, each, hessian_DD) for each in (nearest, rounded))
    assert (after_F <= before_F).all()
    assert after_F.sum() < 0.6 * before_F.sum()
    assert rounded.format == format and rounded.shape == nearest.shape


@every_format
def test_inputs_that_do_not_go_together_leave_nothing_to_make_up_for(name: str) -> None:
    """Only int4 scales may then be better than those that clip nothing, and a weight goes to the nearest step."""
    weight, format = weights(130, 256), FORMATS[name]
    rounded = quantize_compensated(weight, 3 * torch.eye(256), format)
    if format.kind != "int4":
        assert all(torch.equal(rounded.tensors()[k], t) for k, t in quantize(weight, format).tensors().items())
        return
    steps = rounded.scales.float().repeat_interleave(format.group, 1)
    zeros = torch.full_like(rounded.scales, 8.0) if rounded.zeros is None else rounded.zeros
    zeros = zeros.float().repeat_interleave(format.group, 1)
    nearest = torch.clamp((weight / steps).round(), -zeros, 15 - zeros) * steps
    torch.testing.assert_close(dequantize(rounded), nearest)


def test_the_errors_are_those_of_the_outputs() -> None:
    weight, x = weights(5, 32), correlated(32, 20)
    quantized = quantize(weight, FORMATS["int4-g32"])
    outputs = x @ (dequantize(quantized) - weight).T
    torch.testing.assert_close(output_errors(weight, quantized, hessian(x)), outputs.square().mean(0))


@every_format
def test_inputs_that_never_came_are_rounded_to_nearest(name: str) -> None:
    weight, x = weights(130, 256), correlated(256)
    nearest = quantize(weight, FORMATS[name])
    nothing = quantize_compensated(weight, torch.zeros(256, 256), FORMATS[name])
    assert all(torch.equal(nothing.tensors()[kind], tensor) for kind, tensor in nearest.tensors().items())
    x[:, ::2] = 0
    rounded = dequantize(quantize_compensated(weight, hessian(x), FORMATS[name]))
    assert rounded.isfinite().all()
    if FORMATS[name].kind != "int4":  # its scales differ
        assert torch.equal(rounded[:, ::2], dequantize(nearest)[:, ::2]), "they must not make up for anything"


def test_more_damping_moves_weights_less() -> None:
    weight, hessian_DD = weights(16, 64), hessian(correlated(64))
    nearest = dequantize(quantize(weight, FORMATS["int8"]))

    def moved(damping: float) -> float:
        return float(
            (dequantize(quantize_compensated(weight, hessian_DD, FORMATS["int8"], damping=damping)) - nearest).norm()
        )

    assert moved(1e-3) > moved(1.0) > moved(1e6) == 0


def test_fewer_tokens_than_inputs_are_enough_for_a_factor() -> None:
    weight, x = weights(8, 128), correlated(128, 5)
    rounded = quantize_compensated(weight, hessian(x), FORMATS["int4-g32-zeros"])
    nearest = quantize(weight, FORMATS["int4-g32-zeros"])
    assert output_errors(weight, rounded, hessian(x)).sum() < 0.1 * output_errors(weight, nearest, hessian(x)).sum()


def test_groups_of_zeros_stay_zero() -> None:
    weight = weights(4, 64)
    weight[:, 32:] = 0
    for name in ("int4-g32", "int4-g32-zeros"):
        assert (dequantize(quantize_compensated(weight, hessian(correlated(64)), FORMATS[name]))[:, 32:] == 0).all()


def test_a_hessian_that_does_not_fit_or_is_not_finite_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"64 inputs is 64×64, not \(32, 32\)"):
        quantize_compensated(weights(4, 64), torch.eye(32), FORMATS["int8"])
    with pytest.raises(CheckpointError, match="infinities or NaN"):
        quantize_compensated(weights(4, 64), torch.full((64, 64), torch.nan), FORMATS["int8"])
    with pytest.raises(ConfigError, match="48 inputs cannot be cut"):
        quantize_compensated(weights(4, 48), torch.eye(48), FORMATS["int4-g32"])
