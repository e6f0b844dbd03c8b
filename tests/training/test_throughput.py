"""FLOPs of a step against torch's own counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.data.batch import IGNORE
from cascadevl.models.costs import flops, prefill_products
from cascadevl.ops.attention_blocks import BLOCK
from cascadevl.training.config import LoraConfig
from cascadevl.training.lora import attach_lora
from cascadevl.training.objectives.next_token import NextToken
from cascadevl.training.throughput import asked_share, matmul_rate, passes, peak_bytes, step_flops
from cascadevl.training.trainable import choose
from tests.training.samples import batch_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("train", [("vit", "mlp", "llm"), ("mlp",), ("vit", "mlp"), ("llm",)])
def test_the_flops_of_a_step_are_those_that_torch_counts(train: tuple[str, ...]) -> None:
    """Up to what a formula leaves out: patches need no gradient of pixels. What is hidden in a block is counted."""
    parts = tiny_parts("qwen3", std=0.2)
    batch = batch_of(parts, "seven")
    choose(parts.model, train)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        NextToken()(parts.model, batch).total.backward()
    reckoned = step_flops(parts.model.config, [batch], passes(parts.model))
    num_tokens = len(batch.token_ids)
    masked = flops([p for p in prefill_products(parts.model.config.decoder, num_tokens) if p.visible < 1]) / 2
    asked = asked_share(parts.model.config, num_tokens, int((batch.targets != IGNORE).sum()))
    hidden = 3 * masked * asked * BLOCK / num_tokens
    assert reckoned + hidden == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_parts_cost_a_pass_for_every_gradient_they_make_or_let_through() -> None:
    model = tiny_parts("qwen3").model
    expected = {("vit", "mlp", "llm"): (3, 3, 3), ("mlp",): (1, 3, 2), ("llm",): (1, 1, 3), ("vit", "mlp"): (3, 3, 2)}
    for train, times in expected.items():
        choose(model, train)
        assert passes(model) == times
    attach_lora(model, LoraConfig(rank=2), seed=0)
    assert passes(model) == (1, 1, 2)


def test_rates_and_memory_are_measured() -> None:
    assert 1e7 < matmul_rate(CPU, torch.float32, seconds=0.05) < 1e15
    assert peak_bytes(CPU) > 50e6
