"""States: the last two are kept, each whole; what learns, moments and random numbers come back."""

from pathlib import Path

import pytest
import torch

from cascadevl.core.errors import CheckpointError
from cascadevl.training.states import Learned, random_state, read_state, set_random_state, states, write_state

CPU = torch.device("cpu")


def start(value: float) -> tuple[Learned, torch.optim.Optimizer, torch.nn.Parameter]:
    weight = torch.nn.Parameter(torch.full((3,), value))
    return Learned([("a.weight", weight)]), torch.optim.AdamW([weight], lr=0.1), weight


def step(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> None:
    weight.grad = weight.detach() + 1
    optimizer.step()


def test_the_last_two_are_kept_and_the_last_is_read(tmp_path: Path) -> None:
    learned, optimizer, weight = start(1.0)
    for number in range(1, 5):
        step(optimizer, weight)
        write_state(tmp_path, number, {"learned": learned}, optimizer, {"step": number})
    assert [path.name for path in states(tmp_path)] == ["00000003", "00000004"]
    other, theirs, copied = start(9.0)
    assert read_state(tmp_path, {"learned": other}, theirs) == {"step": 4}
    step(optimizer, weight)
    step(theirs, copied)
    assert torch.equal(weight, copied)


def test_a_half_written_state_is_passed_over(tmp_path: Path) -> None:
    learned, optimizer, weight = start(1.0)
    step(optimizer, weight)
    write_state(tmp_path, 7, {"learned": learned}, optimizer, {"step": 7})
    (tmp_path / ".00000008.x1y2").mkdir()
    (tmp_path / "00000009").mkdir()
    assert read_state(tmp_path, {"learned": learned}, optimizer) == {"step": 7}


def test_another_set_of_parameters_is_refused(tmp_path: Path) -> None:
    learned, optimizer, weight = start(1.0)
    step(optimizer, weight)
    write_state(tmp_path, 1, {"learned": learned}, optimizer, {})
    for named in ([("b.weight", weight)], [("a.weight", torch.nn.Parameter(torch.zeros(2)))]):
        with pytest.raises(CheckpointError, match="learned"):
            read_state(tmp_path, {"learned": Learned(named)}, optimizer)
    with pytest.raises(CheckpointError, match="no state"):
        read_state(tmp_path / "none", {"learned": learned}, optimizer)


def test_random_numbers_go_on_where_they_were() -> None:
    torch.manual_seed(5)
    torch.rand(3)
    kept = random_state(CPU)
    expected = torch.rand(4)
    torch.manual_seed(1)
    set_random_state(kept, CPU)
    assert torch.equal(torch.rand(4), expected)
