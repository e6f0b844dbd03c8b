"""Batch invariance: a request has the same bits alone and in any batch, chunks and pages."""

import random
from typing import Any

import pytest
import torch

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import TINY_DECODERS, tiny_parts
from cascadevl.core.generation import Sampling
from cascadevl.engine import kv_cache
from cascadevl.engine.config import EngineConfig
from cascadevl.engine.engine import Engine
from cascadevl.engine.runner import ROWS, Angles
from cascadevl.ops.native.paged_attention import Places
from cascadevl.ops.rope import rope_table
from tests.engine.pictures import ask, picture


def _alone_and_together(parts: Parts, num_batches: int) -> None:
    """Answers, log-probabilities and scores of each request alone, then of random batches on random engines."""
    system = {"role": "system", "content": "s"}
    asked = [[system, *ask("How " * n, *([picture(n, 120, 60)] if n == 2 else []))] for n in range(1, 5)]
    sampling = Sampling(max_new_tokens=6, logprobs=5, loop_guard=False)
    talk = [*asked[1], {"role": "assistant", "content": "yes, yes"}]

    def engine(**settings: Any) -> Engine:
        return Engine(parts, EngineConfig(batch_invariant=True, **settings))

    alone = [engine().generate([messages], sampling)[0].logprobs for messages in asked]
    scored = engine().score([talk])[0].logprobs
    rng = random.Random(0)
    for _ in range(num_batches):
        together = engine(
            page_size=rng.choice([1, 3, 8, 16, 40]),
            max_running=rng.randint(1, 8),
            max_step_tokens=rng.choice([8, 16, 50, 200]),
            max_step_tiles=rng.choice([1, 16]),
        )
        order = rng.choices(range(len(asked)), k=rng.randint(2, 5))
        scoring = together.submit_score(talk)
        for number, got in zip(order, together.generate([asked[n] for n in order], sampling), strict=True):
            assert got.logprobs == alone[number]
        while not scoring.done:
            together.step()
        assert scoring.generation is not None and scoring.generation.logprobs == scored


@pytest.mark.parametrize("native", [True, False], ids=["kernel", "torch"])
@pytest.mark.parametrize("family", TINY_DECODERS)
def test_batch_invariant_requests_have_the_same_bits_in_any_company(
    family: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(kv_cache, "serves", lambda *_: False)
    _alone_and_together(tiny_parts(family, std=0.3), num_batches=2)


@pytest.mark.parametrize(
    ("width", "mlp", "heads", "key_heads"), [(256, 688, 4, 4), (576, 1536, 9, 3), (896, 1024, 14, 2)]
)
def test_batch_invariance_at_the_widths_of_real_models(width: int, mlp: int, heads: int, key_heads: int) -> None:
    changes = {"hidden_size": width, "mlp_size": mlp, "num_heads": heads, "num_kv_heads": key_heads}
    parts = tiny_parts("qwen2", std=0.05, head_size=64, num_layers=1, **changes)
    _alone_and_together(parts, num_batches=2)


def test_a_row_of_a_product_has_the_same_bits_in_any_place_and_company() -> None:
    """What batch invariance rests on: a product of ROWS rows."""
    generator = torch.Generator().manual_seed(0)
    for width, outputs in ((32, 48), (256, 688), (576, 1536), (896, 151), (1024, 1000)):
        weight, rows = (torch.randn(n, width, generator=generator) for n in (outputs, ROWS))
        expected = torch.nn.functional.linear(rows, weight)
        for shift in range(1, ROWS):
            turned = torch.nn.functional.linear(rows.roll(shift, 0), weight)
            assert torch.equal(turned.roll(-shift, 0), expected), (width, outputs, shift)
        others = torch.randn(ROWS, width, generator=generator)
        others[5] = rows[5]
        assert torch.equal(torch.nn.functional.linear(others, weight)[5], expected[5])


@pytest.mark.parametrize("family", TINY_DECODERS)
def test_angles_kept_have_the_same_bits_however_many_there_are(family: str) -> None:
    rope, size = TINY_DECODERS[family].rope, TINY_DECODERS[family].head_size
    kept = Angles(rope, size, torch.device("cpu"))
    for end in (1, 3, 16, 50, 200):
        position_T = torch.arange(end, dtype=torch.int32)
        places = Places(torch.zeros(1, end, dtype=torch.int32), torch.zeros_like(position_T), position_T, 1)
        lengths_T = position_T + 1 if kept.by_length else None
        for found, expected in zip(kept(places, lengths_T), rope_table(position_T, rope, size, lengths_T), strict=True):
            assert torch.equal(found, expected)
