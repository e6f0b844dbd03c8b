"""The average of weights: its formula, that it stands in for them and gives them back, and that it is saved."""

import pytest
import torch

from cascadevl.training.ema import Ema


def test_it_follows_the_formula() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    ema, by_hand = Ema([weight], decay=0.5), 0.0
    for n in range(1, 8):
        with torch.no_grad():
            weight += 1.0
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        by_hand = decay * by_hand + (1 - decay) * n
        assert ema.averages[0].tolist() == pytest.approx([by_hand] * 2)


def test_it_stands_in_for_the_weights_for_a_while() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    ema = Ema([weight], decay=0.9)
    with torch.no_grad():
        weight.fill_(5.0)
    with ema.in_place():
        assert weight.item() == 1.0
    assert weight.item() == 5.0


def test_it_goes_on_where_it_was_saved() -> None:
    weights = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    first, second = (Ema([weight], decay=0.9) for weight in weights)
    for n in range(4):
        with torch.no_grad():
            weights[0].fill_(float(n))
        first.update()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for weight in weights:
            weight.fill_(9.0)
    first.update()
    second.update()
    assert torch.equal(first.averages[0], second.averages[0])
