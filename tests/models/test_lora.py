"""Changes that are learned: fresh they change nothing, learned they compute what a merged matrix computes."""

import pytest
import torch
from torch import nn

from cascadevl.models.linear import AdaptedLinear
from cascadevl.models.lora import AdaptedQuantLinear, LearnedChange, learn_change, learned_changes
from cascadevl.models.quant_linear import QuantLinear
from cascadevl.ops.formats import FORMATS


def small(bias: bool = True, quant: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48, bias=bias))
    if quant:
        linear = model[0]
        assert isinstance(linear, nn.Linear)
        model[0] = QuantLinear.of(linear, FORMATS["int4-g32"])
    return model.requires_grad_(False)


def change(model: nn.Module, dora: bool = False, dropout: float = 0.0) -> LearnedChange:
    return learn_change(model, "0", "mine", rank=4, alpha=8.0, dora=dora, dropout=dropout, seed=1)


def weight_of(model: nn.Module) -> torch.Tensor:
    linear = model[0]  # type: ignore[index]
    return (linear.dequantized() if isinstance(linear, QuantLinear) else linear).weight.detach()


@pytest.mark.parametrize("quant", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_it_computes_the_formula_of_its_paper(dora: bool, bias: bool, quant: bool) -> None:
    """W + (alpha/r)·B·A, and with DoRA m · (W + …) / |W + …| row by row."""
    model = small(bias, quant)
    weight, x = weight_of(model), torch.randn(5, 64, requires_grad=True)
    plain = model(x)
    learned = change(model, dora)
    torch.testing.assert_close(model(x), plain, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        learned.b.normal_()
        if learned.magnitude is not None:
            learned.magnitude.mul_(1.5)
    expected = weight + 8.0 / 4 * learned.b @ learned.a
    if learned.magnitude is not None:
        expected = learned.magnitude[:, None] * expected / expected.norm(dim=1, keepdim=True)
    offset = plain - x @ weight.T
    torch.testing.assert_close(model(x), x @ expected.T + offset, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quant", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_only_the_change_learns_and_gradients_pass_below_it(dora: bool, quant: bool) -> None:
    model = small(quant=quant)
    learned = change(model, dora)
    assert isinstance(model[0], AdaptedQuantLinear if quant else AdaptedLinear)  # type: ignore[index]
    x = torch.randn(5, 64, requires_grad=True)
    with torch.no_grad():
        learned.b.normal_()
    model(x).square().sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {f"0.adapters.mine.0.{part}" for part in ("a", "b", *(["magnitude"] if dora else []))}
    assert all(parameter.grad is not None for parameter in learned.parameters())
    assert learned_changes(model, "mine") == {"0": learned}


def test_a_quantised_base_gives_the_gradients_of_its_dequantised_self() -> None:
    model, x = small(quant=True), torch.randn(5, 64, requires_grad=True)
    quantised = model[0]  # type: ignore[index]
    assert isinstance(quantised, QuantLinear)
    whole = nn.Sequential(quantised.dequantized()).requires_grad_(False)
    found = []
    for each in (model, whole):
        learned = change(each)
        torch.nn.init.constant_(learned.b, 0.1)
        x.grad = None
        each(x).square().sum().backward()
        assert learned.a.grad is not None and x.grad is not None
        found.append((learned.a.grad, x.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_dropout_is_of_training_alone() -> None:
    model, x = small(), torch.ones(3, 64)
    learned = change(model, dropout=0.5)
    torch.nn.init.ones_(learned.b)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_two_changes_of_one_seed_are_equal_and_of_two_are_not() -> None:
    first, second = (change(small()) for _ in range(2))
    other = learn_change(small(), "0", "mine", rank=4, alpha=8.0, dora=False, dropout=0.0, seed=2)
    assert torch.equal(first.a, second.a) and not torch.equal(first.a, other.a)
