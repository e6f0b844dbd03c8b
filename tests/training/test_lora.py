"""LoRA by parts, QLoRA under the decoder, and that a step of it overfits."""

import pytest
import torch

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.models.linear import AdaptedLinear
from cascadevl.models.lora import AdaptedQuantLinear
from cascadevl.training.config import LoraConfig
from cascadevl.training.lora import attach_lora
from cascadevl.training.objectives.next_token import NextToken
from tests.training.samples import batch_of


@pytest.mark.parametrize(("on", "beginning"), [("vit", "vision_model."), ("mlp", "mlp1."), ("llm", "language_model.")])
def test_a_part_gets_changes_and_nothing_else_learns(on: str, beginning: str) -> None:
    model = tiny_parts("qwen3").model
    named = attach_lora(model, LoraConfig(rank=2, on=(on,)), seed=0)
    assert named and all(name.startswith(beginning) for name, _ in named)
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    assert learning == {id(parameter) for _, parameter in named}
    changed = [name for name, module in model.named_modules() if isinstance(module, AdaptedLinear)]
    assert len(changed) == len(named) / 2


@pytest.mark.parametrize(
    "settings", [{}, {"dora": True}, {"quantize": "int4-g32"}, {"quantize": "int4-g32", "dora": True}]
)
def test_every_kind_overfits_one_batch(settings: dict) -> None:
    parts = tiny_parts(
        "qwen3", std=0.3, mlp_size=64
    )  # a frozen output matrix of small weights could say nothing surely
    named = attach_lora(parts.model, LoraConfig(rank=8, alpha=16.0, on=("vit", "mlp", "llm"), **settings), seed=0)
    if "quantize" in settings:
        layers = parts.model.language_model.model.layers
        assert any(isinstance(module, AdaptedQuantLinear) for module in layers.modules())
    optimizer = torch.optim.AdamW([parameter for _, parameter in named], lr=1e-2, weight_decay=0.0)
    batch, losses = batch_of(parts, "total", "seven"), []
    for _ in range(40):
        loss = NextToken()(parts.model, batch).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
