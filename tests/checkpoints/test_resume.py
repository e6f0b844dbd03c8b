"""Training state comes back bit for bit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from cascadevl.checkpoints.resume import load_training, save_training
from cascadevl.core.errors import CheckpointError
from cascadevl.training.muon import muon


def _pair() -> tuple[dict[str, nn.Module], torch.optim.Optimizer]:
    torch.manual_seed(0)
    modules: dict[str, nn.Module] = {"model": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "head": nn.Linear(2, 2)}
    named = [(name, p) for module in modules.values() for name, p in module.named_parameters()]
    return modules, muon(named, lr=1e-2, weight_decay=0.1)


def _step(modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    modules["head"](modules["model"](x)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def _weights(modules: dict[str, nn.Module]) -> list[torch.Tensor]:
    return [p.detach().clone() for module in modules.values() for p in module.parameters()]


def test_two_halves_are_the_whole_bit_for_bit(tmp_path: Path) -> None:
    whole, optimizer = _pair()
    for seed in range(6):
        _step(whole, optimizer, seed)
    first, first_optimizer = _pair()
    for seed in range(3):
        _step(first, first_optimizer, seed)
    save_training(tmp_path / "last", first, first_optimizer, {"step": 3, "where": ["a", 1.5, None]})
    second, second_optimizer = _pair()
    for p in second["model"].parameters():
        nn.init.zeros_(p)
    assert load_training(tmp_path / "last", second, second_optimizer) == {"step": 3, "where": ["a", 1.5, None]}
    for seed in range(3, 6):
        _step(second, second_optimizer, seed)
    assert all(map(torch.equal, _weights(second), _weights(whole)))


def test_loading_without_an_optimizer_fills_the_weights(tmp_path: Path) -> None:
    modules, optimizer = _pair()
    _step(modules, optimizer, 0)
    save_training(tmp_path / "last", modules, optimizer, {})
    other, _ = _pair()
    load_training(tmp_path / "last", other)
    assert all(map(torch.equal, _weights(other), _weights(modules)))


def test_a_folder_without_a_state_is_refused(tmp_path: Path) -> None:
    modules, optimizer = _pair()
    with pytest.raises(CheckpointError, match="holds no training state"):
        load_training(tmp_path, modules, optimizer)


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    modules, optimizer = _pair()
    save_training(tmp_path / "last", modules, optimizer, {})
    with pytest.raises(CheckpointError, match="head"):
        load_training(tmp_path / "last", {"model": modules["model"], "head": nn.Linear(3, 2)})
    with pytest.raises(CheckpointError, match="more"):
        load_training(tmp_path / "last", {"model": modules["model"], "more": nn.Linear(3, 2)})


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    modules, optimizer = _pair()
    save_training(tmp_path / "last", modules, optimizer, {})
    (tmp_path / "last" / "modules.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(CheckpointError, match=r"modules.safetensors"):
        load_training(tmp_path / "last", modules, optimizer)
