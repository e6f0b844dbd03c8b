"""What is measured of a model, and the bounds beside it; sums by hand, no time asserted."""

import pytest
import torch

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.errors import ConfigError
from cascadevl.engine import bounds as module
from cascadevl.engine.bench import Bench, Work
from cascadevl.engine.bounds import Bound, Bounds, held_bytes, product_flops_per_s, quickest_s, read_bytes_per_s
from cascadevl.models import costs
from cascadevl.models.quant_linear import quantize_decoder
from cascadevl.ops.formats import FORMATS

WORK = Work(batch=2, prompt=20, tokens=5)


@pytest.fixture(autouse=True)
def short_trials(monkeypatch):
    monkeypatch.setattr(module, "TRIALS_S", 0.002)


def test_a_bound_is_the_longer_of_two_times():
    assert Bound(100, 10, 50.0, 1.0).seconds == 10 and Bound(100, 10, 50.0, 1.0).by == "bytes"
    assert Bound(100, 10, 5.0, 1.0).seconds == 20 and Bound(100, 10, 5.0, 1.0).by == "operations"


def test_a_round_says_all_tokens_of_all_requests():
    found = Bench(tiny_parts("qwen3")).run(WORK)
    assert 0 < found["decoded"] <= 2 * 4 and "tower_s" not in found
    assert 0 < found["first_token_s"] <= found["prefill_s"]
    assert found["decode_s"] > 0 and found["peak_bytes"] > 1e7


def test_pictures_bring_the_tower_and_their_first_token():
    parts = tiny_parts("qwen3")
    found = Bench(parts).run(Work(prompt=8, tokens=2, images=2, tiles=2))
    assert found["tiles"] == 2 * (2 + parts.spec.thumbnail)
    assert found["pictured_tokens"] > found["tiles"] * parts.spec.visual_tokens_per_tile
    assert found["tower_s"] > 0 and found["pictured_first_token_s"] > 0


def test_every_round_reads_other_prompts():
    bench = Bench(tiny_parts("qwen3"))
    first = bench._prompt(WORK, 0).token_ids
    assert not torch.equal(first, bench._prompt(WORK, 1).token_ids)
    bench.run(Work(prompt=4, tokens=2))
    assert not torch.equal(first, bench._prompt(WORK, 0).token_ids)


def test_what_is_too_long_is_refused():
    parts = tiny_parts("qwen3")
    with pytest.raises(ConfigError, match="too long"):
        Bench(parts).run(Work(prompt=parts.model.config.decoder.rope.longest, tokens=2))


def test_bytes_of_a_step_are_those_of_weights_and_of_keys_seen():
    parts = tiny_parts("qwen3")
    decoder = parts.model.config.decoder
    found = Bounds(parts)
    layers = sum(p.nbytes for name, p in parts.model.language_model.named_parameters() if "proj" in name)
    head = 4 * decoder.vocab_size * decoder.hidden_size
    keys = 4 * costs.cache_numbers(decoder, 30)
    assert found.decode(1, 30, "auto").num_bytes == layers + head + keys
    assert found.decode(3, 30, "auto").num_bytes == layers + head + 3 * keys  # weights are read once for all
    assert found.decode(1, 30, "bfloat16").num_bytes == layers + head + keys // 2
    assert found.prefill(2, 30).num_bytes == layers + head


def test_few_bits_are_counted_as_they_are_kept():
    parts = tiny_parts("qwen3")
    before = Bounds(parts).decode(1, 30, "auto")
    quantize_decoder(parts.model.language_model, FORMATS["int8"])
    after = Bounds(parts).decode(1, 30, "auto")
    numbers = sum(p.k * p.n * p.times for p in costs.decode_products(parts.model.config.decoder, 1)[:5])
    assert before.num_bytes - after.num_bytes == pytest.approx(3 * numbers, rel=0.15)  # scales are kept too
    assert after.flops == before.flops


def test_operations_are_those_of_the_costs():
    parts = tiny_parts("qwen3")
    config = parts.model.config
    found = Bounds(parts)
    assert found.decode(3, 30, "auto").flops == 3 * costs.flops(costs.decode_products(config.decoder, 30))
    prompt = costs.prefill_products(config.decoder, 30)
    hidden = sum(p.flops for p in prompt if p.name in costs.ATTENTION) // 2
    assert found.prefill(1, 30).flops == costs.flops(prompt) - hidden
    assert found.tower(2).flops == costs.flops(costs.tower_products(config, 2) + costs.projector_products(config, 2))
    assert found.tower(2).num_bytes == held_bytes(parts.model.vision_model) + held_bytes(parts.model.mlp1)


def test_experts_that_no_token_asks_are_not_read():
    parts = tiny_parts("qwen3_moe")
    experts = parts.model.config.decoder.experts
    assert experts is not None
    one, many = (Bounds(parts).prefill(1, rows).num_bytes for rows in (1, 1000))
    held = sum(p.nbytes for name, p in parts.model.named_parameters() if ".experts." in name)
    assert many - one == held * (experts.num_experts - experts.num_per_token) // experts.num_experts


def test_rates_are_measured():
    assert read_bytes_per_s(2**20) > 1e8
    assert product_flops_per_s(torch.bfloat16) > 1e8
    calls = []
    assert quickest_s(lambda: calls.append(1)) >= 0 and len(calls) > 1


def test_bounds_name_the_phases_of_the_work():
    bench = Bench(tiny_parts("qwen3"))
    assert set(bench.bounds(WORK)) == {"prefill", "decode"}
    assert set(bench.bounds(Work(prompt=8, images=1))) == {"prefill", "decode", "tower"}
