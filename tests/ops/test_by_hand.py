"""Gradients by hand: against autograd of the plain form, against differences, and where they are not used."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cascadevl.ops import by_hand as module
from cascadevl.ops.by_hand import RMSNorm, Rotate, SwiGLU, by_hand
from cascadevl.ops.norm import rms_norm
from cascadevl.ops.rope import Rope, rope_table, rotate

TURNS = rope_table(torch.arange(7.0), Rope(theta=100.0), 8)


def _plain_rotate(x_TNH: Tensor) -> Tensor:
    cos_TH, sin_TH = (x.to(x_TNH.dtype) for x in TURNS)
    first, second = x_TNH.chunk(2, dim=-1)
    return x_TNH * cos_TH[:, None] + torch.cat([-second, first], dim=-1) * sin_TH[:, None]


def _plain_swiglu(x_TD: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x_TD, gate_FD)) * F.linear(x_TD, up_FD), down_DF)


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "norm": (lambda x, w: RMSNorm.apply(x, w, 1e-5), lambda x, w: w * F.rms_norm(x, w.shape, eps=1e-5), [(7, 6), (6,)]),
    "norm of heads": (
        lambda x, w: RMSNorm.apply(x, w, 1e-5),
        lambda x, w: w * F.rms_norm(x, w.shape, eps=1e-5),
        [(7, 3, 6), (6,)],
    ),
    "rotate": (lambda x: Rotate.apply(x, *(y.to(x.dtype) for y in TURNS)), _plain_rotate, [(7, 3, 8)]),
    "swiglu": (SwiGLU.apply, _plain_swiglu, [(7, 6), (5, 6), (5, 6), (6, 5)]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over several pieces, of which the last is shorter."""
    monkeypatch.setattr(module, "ROWS", 3)
    ours, plain, shapes = CASES[name]
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True) for shape in shapes]
    got, expected = ours(*inputs), plain(*inputs)
    direction = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(got, expected)
    for one, other in zip(
        torch.autograd.grad(got, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_a_frozen_weight_gets_no_gradient_and_changes_no_other(frozen: int) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=draw, requires_grad=True) for shape in CASES["swiglu"][2]]
    expected = torch.autograd.grad(SwiGLU.apply(*inputs).square().sum(), inputs)  # type: ignore[attr-defined]
    inputs[frozen].requires_grad_(False)
    SwiGLU.apply(*inputs).square().sum().backward()  # type: ignore[attr-defined]
    for number, (given, gradient) in enumerate(zip(inputs, expected, strict=True)):
        if number == frozen:
            assert given.grad is None
        else:
            assert given.grad is not None and torch.equal(given.grad, gradient)


def test_learning_gives_the_values_of_inference() -> None:
    draw = torch.Generator().manual_seed(0)
    x_TNH, weight_H = torch.randn(7, 3, 8, generator=draw), torch.randn(8, generator=draw)
    for function, arguments in ((rms_norm, (weight_H, 1e-6)), (rotate, TURNS)):
        learned = function(x_TNH.clone().requires_grad_(), *arguments)  # type: ignore[operator]
        torch.testing.assert_close(learned, function(x_TNH, *arguments), atol=1e-6, rtol=1e-6)  # type: ignore[operator]


def test_where_it_is_used() -> None:
    x, y = torch.ones(2, requires_grad=True), torch.ones(2)
    assert by_hand(x, y) and by_hand(y, x)
    assert not by_hand(y), "nothing learns"
    assert not by_hand(x.bfloat16()) and not by_hand(x, y.double()), "precisions are mixed by the plain form"
    with torch.no_grad():
        assert not by_hand(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_hand(x)
