"""A linear with low-rank changes: what it computes, what is switched, what is left behind."""

import copy

import pytest
import torch
from torch import Tensor, nn

from cascadevl.core.errors import ConfigError
from cascadevl.models.linear import AdaptedLinear, LowRank, adapter_names, detach, use

WIDTH_IN, WIDTH_OUT, RANK = 5, 8, 2


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _change(seed: int, at: int = 0, rows: int | None = None, gain: bool = False) -> LowRank:
    num = WIDTH_OUT if rows is None else rows
    gains = _random(num, seed=seed + 2).abs() + 0.5 if gain else None
    a, b = _random(RANK, WIDTH_IN, seed=seed), _random(num, RANK, seed=seed + 1)
    return LowRank(a, b, 1.5, at=at, rows=rows, gain_F=gains)


def _model(bias: bool, **changes: LowRank) -> tuple[nn.Sequential, AdaptedLinear]:
    linear = AdaptedLinear(nn.Linear(WIDTH_IN, WIDTH_OUT, bias=bias, dtype=torch.float64))
    for name, change in changes.items():
        linear.adapters[name] = nn.ModuleList([change])
    return nn.Sequential(linear), linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize(("at", "rows"), [(0, None), (2, 3)])
def test_it_computes_what_the_changed_matrix_would(bias: bool, gain: bool, at: int, rows: int | None) -> None:
    change = _change(1, at, rows, gain)
    (model, linear), x = _model(bias, x=change), _random(4, WIDTH_IN, seed=9)
    weight = linear.weight.detach().clone()
    part = slice(at, None if rows is None else at + rows)
    weight[part] += 1.5 * change.b.detach() @ change.a.detach()
    if change.gain is not None:
        weight[part] *= change.gain[:, None]
    plain = model(x)
    use(model, "x")
    assert torch.allclose(model(x), nn.functional.linear(x, weight, linear.bias), rtol=0, atol=1e-12)
    assert not torch.allclose(model(x), plain)


def test_two_in_use_are_two_additions_and_none_is_the_model_itself() -> None:
    one, two = _change(1), _change(5, gain=True)
    (model, _), x = _model(True, one=one, two=two), _random(4, WIDTH_IN, seed=9)
    base = model(x)
    said = {}
    for names in (("one",), ("two",), ("one", "two"), ("two", "one")):
        use(model, *names)
        said[names] = model(x) - base
    assert torch.allclose(said["one", "two"], said["one",] + said["two",])
    assert torch.allclose(said["one", "two"], said["two", "one"])
    use(model)
    assert torch.equal(model(x), base)


def test_only_the_low_rank_learns_when_asked() -> None:
    model, linear = _model(False, x=_change(1, 2, 3))
    model.requires_grad_(False)
    linear.adapters.requires_grad_(True)
    use(model, "x")
    model(_random(4, WIDTH_IN, seed=9)).square().sum().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {"0.adapters.x.0.a", "0.adapters.x.0.b"}


@pytest.mark.parametrize("gain", [False, True])
def test_unmerging_gives_the_matrix_back(gain: bool) -> None:
    change = _change(1, gain=gain)
    weight = _random(WIDTH_OUT, WIDTH_IN, seed=3).float()
    merged = change.merged(weight)
    assert float((merged - weight).abs().max()) > 0.1
    assert torch.allclose(change.unmerged(merged), weight, rtol=0, atol=2e-6)


def test_the_base_keeps_its_names_and_its_memory() -> None:
    linear = nn.Linear(WIDTH_IN, WIDTH_OUT)
    adapted = AdaptedLinear(linear)
    assert adapted.weight is linear.weight and adapted.bias is linear.bias
    assert dict(adapted.named_parameters()).keys() == {"weight", "bias"}


def test_the_last_adapter_taken_off_leaves_what_was_there() -> None:
    (model, linear), x = _model(True, one=_change(1), two=_change(5)), _random(4, WIDTH_IN, seed=9)
    base, weight = model(x), linear.weight
    use(model, "one", "two")
    detach(model, "one")
    assert adapter_names(model) == ("two",)
    with_two = model(x)
    use(model, "two")
    assert torch.equal(model(x), with_two) and not torch.equal(with_two, base)
    detach(model, "two")
    assert type(model[0]) is nn.Linear and model[0].weight is weight and torch.equal(model(x), base)


def test_names_that_are_not_attached_are_refused() -> None:
    model, _ = _model(True, one=_change(1))
    with pytest.raises(ConfigError, match="no adapter 'two'; attached: one"):
        use(model, "one", "two")
    with pytest.raises(ConfigError, match="no adapter 'two'"):
        detach(model, "two")
    with pytest.raises(ConfigError, match="attached: none"):
        use(nn.Sequential(nn.Linear(2, 2)), "one")


def test_a_copy_computes_the_same() -> None:
    (model, _), x = _model(True, one=_change(1)), _random(4, WIDTH_IN, seed=9)
    use(model, "one")
    assert torch.equal(copy.deepcopy(model)(x), model(x))
