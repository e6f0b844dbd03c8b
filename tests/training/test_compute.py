"""Recomputed = kept, compiled = eager, and who may multiply in which type."""

import copy
import shutil

import pytest
import torch

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.errors import ConfigError
from cascadevl.training import compute
from cascadevl.training.compute import compile_parts, recompute, resolve_precision
from cascadevl.training.objectives.next_token import NextToken
from cascadevl.training.trainable import set_drop_path
from tests.training.samples import batch_of, gradients

CPU = torch.device("cpu")


def learned(parts: Parts, change: object = None, drop_path: float = 0.5) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a copy in training, after `change(model)`."""
    model = copy.deepcopy(parts.model).requires_grad_(True).train()
    set_drop_path(model, drop_path)
    if callable(change):
        change(model)
    torch.manual_seed(3)
    loss = NextToken()(model, batch_of(parts, "seven", "total")).total
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "gpt_oss"])
def test_recomputing_changes_neither_loss_nor_gradients_nor_names(family: str) -> None:
    parts = tiny_parts(family, std=0.2)
    (kept, kept_gradients), (again, again_gradients) = learned(parts), learned(parts, recompute)
    assert kept == again
    assert kept_gradients.keys() == again_gradients.keys() and len(kept_gradients) > 20
    for name, gradient in kept_gradients.items():
        torch.testing.assert_close(again_gradients[name], gradient, rtol=1e-5, atol=1e-7)


def test_recomputing_keeps_less() -> None:
    parts, kept = tiny_parts("qwen3", std=0.2), []
    for change in (None, recompute):
        model = copy.deepcopy(parts.model).requires_grad_(True).train()
        if change:
            change(model)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.nbytes) or x, lambda x: x):
            NextToken()(model, batch_of(parts, "seven"))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.filterwarnings("ignore")
def test_compiled_equals_eager() -> None:
    """Without drop path, for which compiled code draws other random numbers."""
    parts = tiny_parts("qwen3", std=0.2, num_layers=1)
    del parts.model.vision_model.encoder.layers[1]
    eager, compiled = learned(parts, drop_path=0.0), learned(parts, compile_parts, drop_path=0.0)
    assert compiled[0] == pytest.approx(eager[0], rel=1e-5)
    for name, gradient in eager[1].items():
        torch.testing.assert_close(compiled[1][name], gradient, rtol=1e-3, atol=1e-5)


def test_bfloat16_is_taken_where_it_is_fast_and_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "cpu_multiplies_bf16", lambda: True)
    assert resolve_precision("auto", CPU) == resolve_precision("bfloat16", CPU) == torch.bfloat16
    assert resolve_precision("float32", CPU) == torch.float32
    monkeypatch.setattr(compute, "cpu_multiplies_bf16", lambda: False)
    assert resolve_precision("auto", CPU) == torch.float32
    with pytest.raises(ConfigError, match="no units for bfloat16"):
        resolve_precision("bfloat16", CPU)
