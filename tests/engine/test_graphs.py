"""Recordings that are none: what is copied, filled up and played back, with a decoder in torch on the CPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cascadevl.checkpoints.tiny import TINY_DECODERS, tiny_parts
from cascadevl.core.generation import Sampling
from cascadevl.engine import runner
from cascadevl.engine.engine import Engine
from cascadevl.engine.graphs import SIZES, Graphs, Replay, Step, sizes_up_to
from cascadevl.engine.kv_cache import PagedAttend, PagedCache, Segment, places_of
from cascadevl.models.decoder import Decoder
from cascadevl.ops.native.paged_attention import Places
from cascadevl.ops.rope import rope_table
from tests.engine.pictures import ask

CPU, SCRATCH = torch.device("cpu"), 9
CONFIG = TINY_DECODERS["qwen2"]
SAMPLING = Sampling(max_new_tokens=6, loop_guard=False, ignore_eos=True)


class Tape:
    """Runs the step anew for each replay, into the tensor of the first time, as a CUDA graph does."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.num_replays = 0

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        out_TD = step()
        self.sizes.append(len(out_TD))

        def replay() -> None:
            self.num_replays += 1
            out_TD.copy_(step())

        return replay, out_TD


def _decoder() -> Decoder:
    decoder = Decoder(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return decoder


def _step(decoder: Decoder, cache: PagedCache) -> Step:
    """A decoder over pages, each token a segment of its own."""

    def step(embed_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor, places: Places) -> Tensor:
        segments = [
            Segment(at, position, 1, tuple(places.tables_RP[row].tolist()))
            for at, (row, position) in enumerate(
                zip(places.request_T.tolist(), places.position_T.tolist(), strict=True)
            )
        ]
        found = decoder(embed_TD, places.position_T.float(), PagedAttend(cache, segments))
        expected = rope_table(places.position_T.float(), CONFIG.rope, CONFIG.head_size)
        of_somebody = places.position_T > 0
        assert torch.equal(cos_TH[of_somebody], expected[0][of_somebody])
        assert torch.equal(sin_TH[of_somebody], expected[1][of_somebody])
        return found

    return step


def _graphs(step: Step, tape: Tape, most_tokens: int = 8) -> Graphs:
    return Graphs(
        step, tape, most_tokens=most_tokens, most_pages=4, scratch_page=SCRATCH, width=CONFIG.hidden_size,
        head_size=CONFIG.head_size, dtype=torch.float32, device=CPU,
    )  # fmt: skip


def _cache() -> PagedCache:
    return PagedCache(CONFIG, 10, 4, "float32", CPU)


@torch.inference_mode()
def test_steps_played_back_are_the_steps_themselves() -> None:
    """Requests come and go, one or several tokens each: hidden states and pages are those without recordings."""
    decoder, tape = _decoder(), Tape()
    caches = _cache(), _cache()
    for cache in caches:
        cache.keys.numbers.zero_()
        cache.values.numbers.zero_()
    recorded, plain = _graphs(_step(decoder, caches[0]), tape), _step(decoder, caches[1])
    pages = (3, 1), (0, 7, 5), (2,)
    steps = [
        [(0, 0, 3), (1, 0, 2)],  # request, first token, tokens
        [(0, 3, 1), (1, 2, 1), (2, 0, 1)],
        [(1, 3, 1)],
        [(0, 4, 1), (1, 4, 1), (2, 1, 1)],
        [(1, 5, 4)],
    ]
    for step in steps:
        segments, first = [], 0
        for request, start, num in step:
            segments.append(Segment(first, start, num, pages[request]))
            first += num
        places = places_of(segments, 4)
        embed_TD = torch.randn(first, CONFIG.hidden_size)
        cos_TH, sin_TH = rope_table(places.position_T.float(), CONFIG.rope, CONFIG.head_size)
        found = recorded(embed_TD, cos_TH, sin_TH, places)
        torch.testing.assert_close(found, plain(embed_TD, cos_TH, sin_TH, places), atol=1e-5, rtol=1e-5)
    assert tape.sizes == [8, 4, 1], "each size is recorded when it first comes"
    assert tape.num_replays == len(steps)
    for ours, theirs in zip((caches[0].keys, caches[0].values), (caches[1].keys, caches[1].values), strict=True):
        torch.testing.assert_close(ours.numbers[:, :SCRATCH], theirs.numbers[:, :SCRATCH], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_result_is_not_overwritten_by_the_next() -> None:
    tape = Tape()
    graphs = _graphs(lambda embed_TD, *_: embed_TD * 2, tape)
    places = places_of([Segment(0, 0, 1, (1,))], 4)
    rope = torch.ones(1, CONFIG.head_size)
    ones, twos = (torch.full((1, CONFIG.hidden_size), float(n)) for n in (1, 2))
    first = graphs(ones, rope, rope, places)
    graphs(twos, rope, rope, places)
    assert first.eq(2).all()


@torch.inference_mode()
def test_what_is_too_large_is_left_to_the_step() -> None:
    tape = Tape()
    graphs = _graphs(lambda embed_TD, *_: embed_TD, tape, most_tokens=2)
    for segment in (Segment(0, 0, 3, (1,)), Segment(0, 0, 1, (1, 2, 3, 4, 5))):
        embed_TD = torch.randn(segment.num, CONFIG.hidden_size)
        rope = torch.ones(segment.num, CONFIG.head_size)
        assert graphs(embed_TD, rope, rope, places_of([segment], 4)) is embed_TD
    assert not tape.sizes


@pytest.mark.parametrize(("most", "sizes"), [(1, (1,)), (2, (1, 2)), (5, (1, 2, 4, 8)), (10**4, SIZES)])
def test_sizes_reach_the_most_tokens_of_a_step(most: int, sizes: tuple[int, ...]) -> None:
    assert tuple(sizes_up_to(most)) == sizes


def test_a_runner_asks_it_for_steps_of_short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with a step in torch: prompts go another way, and greedy answers are the same."""
    parts, tape = tiny_parts("qwen2", std=0.3), Tape()
    expected = Engine(parts).generate([ask("How " * n) for n in range(1, 5)], SAMPLING)

    class OnGpu:
        @staticmethod
        def of(decoder: Decoder, cache: PagedCache) -> Step:
            return _step(decoder, cache)

    monkeypatch.setattr(runner, "TritonDecoder", OnGpu)
    monkeypatch.setattr(runner, "cuda_recorder", lambda: tape)
    found = Engine(parts).generate([ask("How " * n) for n in range(1, 5)], SAMPLING)
    assert [g.token_ids for g in found] == [g.token_ids for g in expected]
    assert tape.sizes == [4] and tape.num_replays == SAMPLING.max_new_tokens - 1
