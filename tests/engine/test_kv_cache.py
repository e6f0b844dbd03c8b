"""Attending over pages is attending over the whole sequence, however it is cut."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cascadevl.checkpoints.tiny import TINY_DECODERS
from cascadevl.core.config import evolve
from cascadevl.engine import kv_cache
from cascadevl.engine.kv_cache import PagedAttend, PagedCache, PageTables, Segment, places_of
from cascadevl.ops.attention import Layer, dense

CONFIG = evolve(TINY_DECODERS["qwen3"], num_layers=2)
HEADS, KEY_HEADS, SIZE = CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.head_size
LAYERS = [
    Layer(index=0, scale=0.25),
    Layer(index=1, scale=0.3, window=5),
    Layer(index=1, scale=0.25, sinks_N=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    Layer(index=0, scale=0.25, window=3, sinks_N=torch.tensor([0.5, -1.0, 2.0, 0.0])),
]


def _cache(num_pages: int, page_size: int) -> PagedCache:
    cache = PagedCache(CONFIG, num_pages, page_size, "float32", torch.device("cpu"))
    # What former requests left.
    cache.keys.numbers.fill_(float("nan"))
    cache.values.numbers.fill_(float("nan"))
    return cache


@torch.inference_mode()
def _attend(layer: Layer, qkv: list[tuple[Tensor, ...]], seed: int, page_size: int, **settings) -> list[Tensor]:
    """Outputs of several sequences, computed together in steps of random chunks over shuffled pages."""
    rng = random.Random(seed)
    counts = [-(-len(q) // page_size) for q, _, _ in qkv]
    cache, order = _cache(sum(counts), page_size), list(range(sum(counts)))
    rng.shuffle(order)
    tables = [tuple(order.pop() for _ in range(count)) for count in counts]
    done, outs = [0] * len(qkv), [list[Tensor]() for _ in qkv]
    while any(at < len(q) for at, (q, _, _) in zip(done, qkv, strict=True)):
        segments, rows, first = [], [], 0
        # Those with few tokens come first, as the scheduler has it.
        sizes = [(min(rng.choice([0, 1, 2, 8, 9, 20]), len(qkv[row][0]) - at), row) for row, at in enumerate(done)]
        for num, row in sorted(sizes):
            if num:
                segments.append(Segment(first, done[row], num, tables[row]))
                rows.append((row, slice(done[row], done[row] + num)))
                first, done[row] = first + num, done[row] + num
        if segments:
            together = (torch.cat([qkv[row][i][part] for row, part in rows]) for i in range(3))
            out_TNH = PagedAttend(cache, segments, **settings)(layer, *together)
            for (row, _), out in zip(rows, out_TNH.split([s.num for s in segments]), strict=True):
                outs[row].append(out)
    return [torch.cat(parts) for parts in outs]


def _sequences(seed: int, lengths: list[int]) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randn(length, heads, SIZE, generator=generator) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
        for length in lengths
    ]


@pytest.mark.parametrize("native", [True, False], ids=["kernel", "torch"])
@pytest.mark.parametrize("layer", LAYERS, ids=["plain", "window", "sinks", "both"])
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(1, 17))
def test_paged_equals_dense(native: bool, layer: Layer, seed: int, lengths: list[int], page_size: int) -> None:
    sequences = _sequences(seed, lengths)
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(kv_cache, "serves", lambda *_: False)
        got = _attend(layer, sequences, seed, page_size)
    for out, (q, k, v) in zip(got, sequences, strict=True):
        torch.testing.assert_close(out, dense(layer, q, k, v), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("native", [True, False], ids=["kernel", "torch"])
@pytest.mark.parametrize("layer", LAYERS, ids=["plain", "window", "sinks", "both"])
def test_invariant_results_have_the_same_bits_in_any_chunks_pages_and_company(native: bool, layer: Layer) -> None:
    sequences = _sequences(0, [43, 20, 31])
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(kv_cache, "serves", lambda *_: False)
        alone = [_attend(layer, [sequence], 0, 7, invariant=True)[0] for sequence in sequences]
        for seed in range(10):
            together = _attend(layer, sequences, seed, 1 + seed, invariant=True)
            assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_the_memory_of_a_page_is_told_beforehand() -> None:
    for page_size in (1, 16):
        told = PagedCache.page_bytes(CONFIG, page_size, "float32")
        cache = _cache(3, page_size)
        assert 3 * told == cache.keys.num_bytes + cache.values.num_bytes


@given(st.integers(0, 10**6), st.integers(0, 40))
def test_tables_kept_between_steps_are_those_made_anew(seed: int, widest: int) -> None:
    rng, tables, page = random.Random(seed), PageTables(widest), 0
    running: list[list[int]] = [[]]
    for _ in range(40):
        for pages in running:
            for _ in range(rng.choice([0, 0, 1, 5])):
                page += 1
                pages.append(page)
        if rng.random() < 0.3:
            running.insert(rng.randint(0, len(running)), [-1])
        if len(running) > 1 and rng.random() < 0.3:
            running.pop(rng.randrange(len(running)))
        step = rng.sample(running, rng.randint(1, len(running))) if rng.random() < 0.2 else running
        found = tables.of(step)
        assert len(found) == len(step) and found.flags.c_contiguous
        assert [row[: len(pages)].tolist() for row, pages in zip(found, step, strict=True)] == step


def test_places_are_those_of_each_token() -> None:
    places = places_of([Segment(0, 7, 3, (4, 5)), Segment(3, 2, 1, (6,)), Segment(4, 0, 2, (9,))], 8)
    assert places.position_T.tolist() == [7, 8, 9, 2, 0, 1]
    assert places.request_T.tolist() == [0, 0, 0, 1, 2, 2]
    assert [row[0] for row in places.tables_RP.tolist()] == [4, 6, 9]
    alone = places_of([Segment(0, 7, 1, (4, 5)), Segment(1, 2, 1, (6,))], 8)
    assert (alone.position_T.tolist(), alone.request_T.tolist()) == ([7, 2], [0, 1])
    assert {x.dtype for x in (places.position_T, places.request_T, places.tables_RP)} == {torch.int32}
