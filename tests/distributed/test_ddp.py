"""Two processes make the steps of one, whatever mix of pictures and text each of them has."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cascadevl.distributed.ddp import sum_gradients
from cascadevl.distributed.mesh import World, joined
from tests.distributed.ranks import run_ranks


def test_alone_everything_is_the_identity() -> None:
    with joined("cpu") as world:
        assert world == World() and world.is_first
        assert world.sum([1.0, 2.0]) == [1.0, 2.0]
        assert world.all(True) and not world.all(False)
        assert world.gather("x") == ["x"]
    parameter = torch.nn.Parameter(torch.ones(2))
    sum_gradients([parameter], world)
    assert parameter.grad is None


def test_two_ranks_step_as_one_on_any_mix_of_modalities(tmp_path: Path) -> None:
    """Text beside pictures, text alone, and two packs beside one: losses, norms and weights agree."""
    for number in (1, 2):
        for ran in run_ranks(["-m", "tests.distributed.steps_on_ranks", str(tmp_path / f"of{number}")], number):
            assert ran.returncode == 0, ran.stderr
    one, first, second = (load(tmp_path / f"{name}.pt") for name in ("of1-0", "of2-0", "of2-1"))
    assert first["losses"] == second["losses"]
    for (loss, tokens, norm, terms), (wanted, wanted_tokens, wanted_norm, wanted_terms) in zip(
        first["losses"], one["losses"], strict=True
    ):
        assert tokens == wanted_tokens
        assert (loss, norm) == pytest.approx((wanted, wanted_norm), rel=1e-4)
        assert terms == pytest.approx(wanted_terms, rel=1e-4)
    for name, weight in one["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        # AdamW takes full steps along slopes that are only noise: a few of them may differ in sign.
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-3, atol=3e-3)
    difference = sum(float((first["weights"][n] - w).square().sum()) for n, w in one["weights"].items())
    assert difference < 1e-6


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)
