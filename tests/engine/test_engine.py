"""The engine says what the simple generator says; requests share work and nothing else."""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from cascadevl.api import Bundle
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import TINY_DECODERS, tiny_parts
from cascadevl.core.config import evolve
from cascadevl.core.errors import ConfigError, InternalError, MediaError, MessageError
from cascadevl.core.generation import Generation, Sampling
from cascadevl.engine.config import EngineConfig
from cascadevl.engine.engine import Engine, Ticket
from cascadevl.engine.kv_cache import PagedCache
from cascadevl.engine.simple import generate
from cascadevl.models.config import FlashConfig
from cascadevl.models.internvl import InternVL, fresh
from cascadevl.preprocessing.processor import Processor
from tests.engine.pictures import ask, picture

PARTS = {family: tiny_parts(family, std=0.3) for family in TINY_DECODERS}
QWEN = PARTS["qwen3"]
ASKED = [ask("How many?"), ask("Read it.", picture(0, 150, 60)), ask("q"), ask("And these?", picture(1), picture(2))]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 1.0, "seed": 5, "top_k": 30, "top_p": 0.9, "min_p": 0.01},
    "penalised": {"repetition_penalty": 1.3},
}


def _simple(parts: Parts, messages: Any, sampling: Sampling, **settings: Any) -> Generation:
    *_, generation = generate(parts, parts.processor(messages, **settings), sampling)
    assert isinstance(generation, Generation)
    return generation


def _finish(engine: Engine) -> None:
    while engine.busy:
        engine.step()
        engine.check_integrity()
    assert engine.pool.num_available == engine.pool.num_pages, "a page was not given back"


def _same(got: Generation | None, expected: Generation) -> None:
    """All but timings, and pages that were found."""
    assert got is not None
    assert got.error is None, got.error
    usage = dataclasses.replace(got.usage, cached_tokens=0)
    assert (got.text, got.token_ids, got.finish_reason) == (expected.text, expected.token_ids, expected.finish_reason)
    assert (usage, got.spec_hash, got.grids) == (expected.usage, expected.spec_hash, expected.grids)
    assert (got.logprobs is None) == (expected.logprobs is None)
    for ours, theirs in zip(got.logprobs or (), expected.logprobs or (), strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=2e-4)
        assert [value for _, value in ours.top] == pytest.approx([value for _, value in theirs.top], abs=2e-4)


def _flash() -> Parts:
    flash = FlashConfig(enabled=True, relative_threshold=0.4, absolute_threshold=0.0)
    model = fresh(evolve(QWEN.model.config, flash=flash), seed=0, std=0.2)
    return evolve(QWEN, model=model.eval().requires_grad_(False))


# Answers are those of the simple generator


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", PARTS)
def test_answers_are_those_of_the_simple_generator(family: str, way: str) -> None:
    parts, sampling = PARTS[family], Sampling(max_new_tokens=24, logprobs=3, loop_guard=False, **WAYS[way])
    engine = Engine(parts, EngineConfig(max_step_tokens=32, max_running=8, page_size=8))
    for messages, got in zip(ASKED, engine.generate(ASKED, sampling), strict=True):
        _same(got, _simple(parts, messages, sampling))
    assert engine.pool.num_available == engine.pool.num_pages


def test_a_flash_model_reads_the_same_shorter_prompts() -> None:
    parts, sampling = _flash(), Sampling(max_new_tokens=12, logprobs=2, loop_guard=False)
    asked = [
        ask("q", picture(0, 170, 110)),
        ask("only words"),
        ask("q", picture(1, 56, 56)),
        ask("r", picture(0, 170, 110)),
    ]
    engine = Engine(parts, EngineConfig(page_size=4))
    answers = [_simple(parts, messages, sampling) for messages in asked]
    for got, expected in zip(engine.generate(asked, sampling), answers, strict=True):
        _same(got, expected)
    assert answers[0].usage.prompt_tokens < len(parts.processor(asked[0]).token_ids)


def test_a_flash_model_scores_full_pictures_beside_compressed_ones() -> None:
    """The same pictures, told in another number of tokens: no page of the one is taken for the other."""
    parts, sampling = _flash(), Sampling(max_new_tokens=6, logprobs=0)
    asked = [ask("q", picture(0, 170, 110)), ask("q", picture(1, 56, 56))]
    talks = [[*messages, {"role": "assistant", "content": "yes"}] for messages in asked]
    engine = Engine(parts, EngineConfig(page_size=1))
    for _ in range(2):
        for messages, talk in zip(asked, talks, strict=True):
            scored = engine.score([talk])[0]
            _same(engine.generate([messages], sampling)[0], _simple(parts, messages, sampling))
            expected = _scores(parts, talk)
            assert [p.logprob for p in scored.logprobs or ()] == pytest.approx(expected.tolist(), abs=2e-4)


def test_stop_texts_and_the_loop_guard_end_answers() -> None:
    plain = _simple(QWEN, "q", Sampling(max_new_tokens=60, temperature=1.0, seed=1))
    stop = plain.text[5:7]
    for sampling in (
        Sampling(max_new_tokens=60, temperature=1.0, seed=1, stop=(stop,)),
        Sampling(max_new_tokens=100, stop=("\n",)),
        Sampling(max_new_tokens=100),
    ):
        _same(Engine(QWEN).generate(["q"], sampling)[0], _simple(QWEN, "q", sampling))


def test_a_loop_ends_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tiny_parts("qwen3")
    steps = iter(range(10**6))

    def logits(hidden_TD: Tensor) -> Tensor:
        said = torch.tensor([65 + next(steps) % 3 for _ in hidden_TD])
        return torch.nn.functional.one_hot(said, 272).float() * 50

    monkeypatch.setattr(parts.model.language_model, "logits", logits)
    assert Engine(parts).generate(["q"])[0].finish_reason == "repetition"


@pytest.mark.parametrize("family", ["internlm3", "phi3", "gpt_oss"])
def test_beyond_the_trained_length_it_is_the_same_too(family: str) -> None:
    """Scaled rope: prompts on both sides of the border, and an answer that crosses it."""
    longest = {"internlm3": 64, "phi3": 2048, "gpt_oss": 2048}[family]
    rope = evolve(TINY_DECODERS[family].rope, max_position=longest)
    if family == "phi3":
        rope = evolve(rope, trained_position=100)
    parts = tiny_parts(family, std=0.3, rope=rope)
    sampling = Sampling(max_new_tokens=30, logprobs=1, loop_guard=False)
    system = {"role": "system", "content": "s"}
    asked = [[system, *ask("ab" * n)] for n in (5, 15, 22, 30, 45, 46)]
    engine = Engine(parts, EngineConfig(page_size=4, max_step_tokens=40, max_running=4))
    for messages, got in zip(asked, engine.generate(asked, sampling), strict=True):
        _same(got, _simple(parts, messages, sampling))


def test_pre_empted_answers_are_the_same() -> None:
    sampling = Sampling(max_new_tokens=40, temperature=1.0, seed=3, logprobs=2, loop_guard=False)
    asked = [[{"role": "system", "content": ""}, *ask("q" * n)] for n in (3, 9, 20, 30)]
    engine = _with_pages(QWEN, 13, page_size=8, max_running=4)
    for messages, got in zip(asked, engine.generate(asked, sampling), strict=True):
        _same(got, _simple(QWEN, messages, sampling))
    assert engine.stats()["preemptions"] > 0


def _with_pages(parts: Parts, num_pages: int, page_size: int, **settings: Any) -> Engine:
    page_bytes = PagedCache.page_bytes(parts.model.config.decoder, page_size, "float32")
    engine = Engine(parts, EngineConfig(page_size=page_size, cache_bytes=(num_pages + 1) * page_bytes, **settings))
    assert engine.pool.num_pages == num_pages
    return engine


# Streaming


def test_pieces_make_the_text_while_others_go_on() -> None:
    engine, sampling = Engine(QWEN), Sampling(max_new_tokens=30, temperature=1.5, seed=2, loop_guard=False)
    tickets = [engine.submit(messages, sampling) for messages in ASKED]
    streams = [engine.stream(ticket) for ticket in tickets]
    said = ["" for _ in tickets]
    while any(stream is not None for stream in streams):
        for number, stream in enumerate(streams):
            piece = next(stream, None) if stream is not None else None
            if piece is None:
                streams[number] = None  # type: ignore[call-overload]
            else:
                assert piece
                said[number] += piece
    for text, ticket, messages in zip(said, tickets, ASKED, strict=True):
        assert ticket.generation is not None
        assert text == ticket.generation.text == _simple(QWEN, messages, sampling).text


def test_the_news_of_each_step_are_all_that_was_said_and_ended() -> None:
    engine = Engine(QWEN, EngineConfig(max_running=2))
    tickets = [engine.submit(messages, Sampling(max_new_tokens=3 + n)) for n, messages in enumerate(ASKED)]
    tickets.append(engine.submit_score([*ask("q"), {"role": "assistant", "content": "yes"}]))
    texts, ended = dict.fromkeys(tickets, ""), list[Ticket]()
    while engine.busy:
        said = {ticket: len(ticket.request.said) for ticket in tickets}
        engine.step()
        assert len(set(engine.news)) == len(engine.news)
        changed = [t for t in tickets if len(t.request.said) > said[t] or (t.done and t not in ended)]
        assert set(engine.news) == set(changed)
        for ticket in engine.news:
            texts[ticket] += "".join(ticket.pieces)
            ticket.pieces.clear()
            ended += [ticket] if ticket.done else []
    assert len(ended) == len(tickets)
    assert [texts[ticket] for ticket in tickets] == [t.generation.text for t in tickets if t.generation]


def test_the_first_piece_comes_before_the_answer_is_whole() -> None:
    engine = Engine(QWEN)
    ticket = engine.submit("q", Sampling(max_new_tokens=50, temperature=1.0, seed=0, loop_guard=False))
    next(engine.stream(ticket))
    assert ticket.generation is None
    assert 0 < len(ticket.request.said) < 50


# Sharing


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of tiles that the tower was given."""
    sizes: list[int] = []
    original = InternVL.encode_tiles

    def encode_tiles(self: InternVL, tiles_SCYX: Tensor) -> Tensor:
        sizes.append(len(tiles_SCYX))
        return original(self, tiles_SCYX)

    monkeypatch.setattr(InternVL, "encode_tiles", encode_tiles)
    return sizes


def test_several_answers_share_their_prompt(encoded: list[int]) -> None:
    messages, sampling = ask("Read it.", picture(0, 150, 60)), Sampling(max_new_tokens=12, temperature=1.0, seed=7)
    engine = Engine(QWEN, EngineConfig(page_size=4))
    tickets = engine.submit_several(messages, sampling, 5)
    _finish(engine)
    assert sum(encoded) == len(tickets[0].inputs.tiles) > 1
    num_prompt = len(tickets[0].inputs.token_ids)
    for number, ticket in enumerate(tickets):
        generation = ticket.generation
        _same(generation, _simple(QWEN, messages, dataclasses.replace(sampling, seed=7 + number)))
        assert generation is not None
        assert generation.usage.cached_tokens == (0 if number == 0 else (num_prompt - 1) // 4 * 4)
    assert len({ticket.generation.text for ticket in tickets if ticket.generation}) > 1


def test_an_answer_less_than_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Engine(QWEN).submit_several("q", num=0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"sampling": {"temperature": 0.5}}, "cascadevl.Sampling"),
        ({"priority": "high"}, "'high'"),
        ({"adapters": "mine"}, "list of names"),
    ],
)
def test_what_would_fail_in_a_step_is_refused_before_it(arguments, told) -> None:
    engine = Engine(QWEN)
    with pytest.raises(ConfigError, match=told):
        engine.submit("q", **arguments)
    assert not engine.busy


def test_an_engine_aborts_its_own_requests_only() -> None:
    ticket = Engine(QWEN).submit("q")
    with pytest.raises(ConfigError, match="gave out"):
        Engine(QWEN).abort(ticket)
    with pytest.raises(ConfigError, match="loaded model"):
        Engine(3)


PICTURE = picture(3, 150, 60)
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "the same": (ask("What?", PICTURE), {}),
    "another question": (ask("Why?", PICTURE), {}),
    "another picture": (ask("What?", picture(4, 150, 60)), {}),
    "fewer tiles": (ask("What?", PICTURE), {"max_tiles": 1}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_found_is_what_is_the_same(variant: str) -> None:
    """First the picture with a question, then a variant: right either way, and shared up to where it differs."""
    engine, sampling = Engine(QWEN, EngineConfig(page_size=1)), Sampling(max_new_tokens=12, logprobs=2)
    engine.generate([ask("What?", PICTURE)], sampling)
    messages, settings = VARIANTS[variant]
    got = engine.generate([messages], sampling, **settings)[0]
    _same(got, _simple(QWEN, messages, sampling, **settings))
    first, second = QWEN.processor(ask("What?", PICTURE)), QWEN.processor(messages, **settings)
    both = min(len(first.token_ids), len(second.token_ids))
    places = (second.token_ids == QWEN.model.config.image_token_id).nonzero().flatten()
    differs = (first.token_ids[:both] != second.token_ids[:both]).nonzero().flatten().tolist()
    expected = {
        "the same": len(second.token_ids) - 1,
        "another question": differs[0] if differs else None,
        "another picture": int(places[0]),
        "fewer tiles": int(places[0]),
    }[variant]
    assert got.usage.cached_tokens == expected


def test_another_spec_finds_nothing_of_a_picture() -> None:
    """The same pixels, normalised otherwise."""
    engine = Engine(QWEN, EngineConfig(page_size=1))
    sampling, messages = Sampling(max_new_tokens=5), ask("What?", PICTURE)
    engine.generate([messages], sampling)
    spec = evolve(QWEN.spec, resize="torch_uint8")
    engine.parts = evolve(QWEN, spec=spec, processor=Processor(spec, QWEN.tokenizer))
    got = engine.generate([messages], sampling)[0]
    places = QWEN.processor(messages).token_ids == QWEN.model.config.image_token_id
    assert got.usage.cached_tokens == int(places.nonzero()[0])
    _same(got, _simple(engine.parts, messages, sampling))


def test_without_the_prefix_cache_nothing_is_found() -> None:
    engine = Engine(QWEN, EngineConfig(page_size=1, prefix_cache=False))
    sampling, messages = Sampling(max_new_tokens=5, temperature=1.0, seed=0), ask("What?", PICTURE)
    conversation = [*messages, {"role": "assistant", "content": "yes"}]
    engine.generate([messages, messages], sampling)
    engine.score([conversation, conversation])
    for number, ticket in enumerate(engine.submit_several(messages, sampling, 3)):
        while not ticket.done:
            engine.step()
        assert ticket.generation is not None
        _same(ticket.generation, _simple(QWEN, messages, dataclasses.replace(sampling, seed=number)))
    assert engine.stats()["cached_tokens"] == 0


def test_a_conversation_that_goes_on_finds_what_was_said() -> None:
    engine, sampling = Engine(QWEN, EngineConfig(page_size=1)), Sampling(max_new_tokens=12)
    first = engine.generate([ask("What?", PICTURE)], sampling)[0]
    messages = [*ask("What?", PICTURE), {"role": "assistant", "content": "ab"}, *ask("Why?")]
    _same(engine.generate([messages], sampling)[0], _simple(QWEN, messages, sampling))
    assert engine.stats()["cached_tokens"] >= first.usage.prompt_tokens - 1


def test_tiles_are_encoded_once_across_requests_within_their_memory(encoded: list[int]) -> None:
    tile_bytes = 4 * 32 * 4
    engine = Engine(QWEN, EngineConfig(vision_bytes=5 * tile_bytes))
    num = len(QWEN.processor(ASKED[1]).tiles)
    for _ in range(3):
        engine.generate([ASKED[1]], Sampling(max_new_tokens=2))
    assert sum(encoded) == num and engine.stats()["tile_hits"] == 2 * num
    engine.generate([ask("q", picture(seed, 150, 60)) for seed in range(10, 14)], Sampling(max_new_tokens=2))
    assert engine.stats()["tile_cache_bytes"] <= 5 * tile_bytes
    _same(
        engine.generate([ASKED[1]], Sampling(max_new_tokens=5))[0], _simple(QWEN, ASKED[1], Sampling(max_new_tokens=5))
    )
    assert sum(encoded) > num


def test_tiles_of_several_requests_go_through_the_tower_together(encoded: list[int]) -> None:
    engine = Engine(QWEN, EngineConfig(max_step_tiles=6))
    engine.generate([ask("q", picture(seed)) for seed in range(5)], Sampling(max_new_tokens=2))
    assert encoded[0] == 5


def test_a_client_with_many_pictures_does_not_starve_one_with_one() -> None:
    engine = Engine(QWEN, EngineConfig(max_running=2, max_step_tokens=64))
    sampling = Sampling(max_new_tokens=3, loop_guard=False)
    many = [engine.submit(ask("q", picture(seed)), sampling, client="many") for seed in range(12)]
    for _ in range(3):
        engine.step()
    tickets = [
        engine.submit(ask("q", picture(99)), sampling, client="one"),
        engine.submit("q", sampling, client="word"),
    ]
    while not all(ticket.done for ticket in tickets):
        engine.step()
    assert sum(ticket.done for ticket in many) <= 6
    _finish(engine)


def test_cleared_caches_are_empty_and_the_answers_right_after_new_weights() -> None:
    parts = tiny_parts("qwen3", std=0.3)
    engine, sampling = Engine(parts, EngineConfig(page_size=2)), Sampling(max_new_tokens=8)
    engine.generate(ASKED, sampling)
    ticket = engine.submit("q")
    with pytest.raises(InternalError, match="at work"):
        engine.clear_caches()
    engine.abort(ticket)
    parts.model.load_state_dict(tiny_parts("qwen3", std=0.3, seed=1).model.state_dict())
    engine.clear_caches()
    for messages, got in zip(ASKED, engine.generate(ASKED, sampling), strict=True):
        _same(got, _simple(parts, messages, sampling))


# Scores


def _scores(parts: Parts, talk: Any) -> Tensor:
    """Log-probabilities of the trained tokens, from all logits."""
    token_ids, logits_TV = Bundle(parts).logits(talk)
    trained = parts.processor(talk).trained.nonzero().flatten()
    return logits_TV.log_softmax(-1)[trained - 1, token_ids[trained]]


TALKS = [
    [*ask("a", picture(0, 60, 60)), {"role": "assistant", "content": "yes, "}],
    [*ask("aaa"), {"role": "assistant", "content": "yes, " * 3}, *ask("w"), {"role": "assistant", "content": "no"}],
    [*ask("a" * 9), {"role": "assistant", "content": "yes, " * 60}],
]


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "internlm3"])
def test_scores_are_log_probabilities_of_what_the_assistant_says(family: str) -> None:
    parts = PARTS[family]
    engine = Engine(parts, EngineConfig(page_size=4, max_step_tokens=16, max_running=8))
    for _ in range(2):  # the second time, pages are found
        for talk, got in zip(TALKS, engine.score(TALKS), strict=True):
            assert got.error is None
            inputs = parts.processor(talk)
            assert got.token_ids == tuple(inputs.token_ids[inputs.trained].tolist())
            assert [p.token_id for p in got.logprobs or ()] == list(got.token_ids)
            scores = torch.tensor([p.logprob for p in got.logprobs or ()])
            torch.testing.assert_close(scores, _scores(parts, talk), atol=2e-4, rtol=0)
    assert engine.stats()["cached_tokens"] > 0


def test_inputs_prepared_before_are_scored_alike() -> None:
    engine = Engine(QWEN, EngineConfig(prefix_cache=False))
    ticket = engine.submit_score(QWEN.processor(TALKS[0]))
    _finish(engine)
    assert ticket.generation is not None
    assert ticket.generation.logprobs == engine.score([TALKS[0]])[0].logprobs


def test_what_was_scored_before_a_pre_emption_is_not_scored_twice() -> None:
    engine = Engine(QWEN, EngineConfig(page_size=4, max_step_tokens=16, max_running=8))
    ticket, times = engine.submit_score(TALKS[2]), 0
    while not ticket.done:
        engine.step()
        if ticket.scored and not ticket.done and times < 5:
            engine.scheduler._preempt(ticket.request)  # as if others needed its pages
            times += 1
    assert times == 5 and ticket.generation is not None
    scores = torch.tensor([p.logprob for p in ticket.generation.logprobs or ()])
    torch.testing.assert_close(scores, _scores(QWEN, TALKS[2]), atol=2e-4, rtol=0)


def test_there_must_be_something_to_score() -> None:
    with pytest.raises(MessageError, match="nothing to score"):
        Engine(QWEN).submit_score("q")


# Errors are those of one request


def _well(engine: Engine) -> None:
    """It still works, and nothing is left over."""
    assert not engine.busy
    _finish(engine)
    sampling = Sampling(max_new_tokens=6)
    _same(engine.generate([ASKED[1]], sampling)[0], _simple(QWEN, ASKED[1], sampling))


def test_a_bad_request_fails_alone(tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    part = {"type": "image", "image": str(tmp_path / "broken.png")}
    bad: list[tuple[Any, type[Exception]]] = [
        ([{"role": "user", "content": [part]}], MediaError),
        ("q" * 5000, MessageError),
        ([{"role": "wizard", "content": "q"}], MessageError),
        ([{"role": "user", "content": [{"type": "image", "image": "/no/such/file.png"}]}], MediaError),
        ([], MessageError),
    ]
    engine, sampling = Engine(QWEN, EngineConfig(max_running=2)), Sampling(max_new_tokens=5)
    mixed = [messages for pair in zip([b for b, _ in bad], [*ASKED, "q"], strict=True) for messages in pair]
    answers = engine.generate(mixed, sampling)
    for (_, kind), got in zip(bad, answers[::2], strict=True):
        assert isinstance(got.error, kind) and got.finish_reason == "error" and not got.text
    for messages, got in zip([*ASKED, "q"], answers[1::2], strict=True):
        _same(got, _simple(QWEN, messages, sampling))
    _well(engine)


@pytest.mark.parametrize("scored", [False, True], ids=["said", "scored"])
def test_no_numbers_for_one_request_are_an_error_of_that_one(scored: bool) -> None:
    """The embedding of one byte is poisoned; one prompt has that byte."""
    parts = tiny_parts("qwen3", std=0.3)
    (poison,) = parts.tokenizer.encode("~")
    asked = [
        [*ask(text), *[{"role": "assistant", "content": "yes"}] * scored] for text in ("one", "tw~", "three", "four")
    ]
    engine = Engine(parts, EngineConfig(page_size=2))

    def run() -> list[Generation]:
        if scored:
            return engine.score(asked)
        return engine.generate(asked, Sampling(max_new_tokens=8, logprobs=0, loop_guard=False))

    expected = run()
    engine.clear_caches()
    weights, head = parts.model.language_model.model.embed_tokens.weight, parts.model.language_model.lm_head
    assert head is not None
    weights[poison] = math.nan
    answers = run()
    assert isinstance(answers[1].error, InternalError) and answers[1].finish_reason == "error"
    for number in (0, 2, 3):
        assert answers[number].error is None and answers[number].token_ids == expected[number].token_ids
    _finish(engine)
    weights[poison] = 0.0
    engine.clear_caches()
    assert run()[1].error is None


def test_what_the_cache_can_never_hold_is_refused_with_both_numbers() -> None:
    engine = _with_pages(QWEN, 3, page_size=8)
    with pytest.raises(MessageError, match=r"cache holds 24.*cache_bytes"):
        engine.submit("a question that is longer than that")
    assert not engine.busy


def test_an_answer_ends_where_the_cache_does() -> None:
    system = {"role": "system", "content": ""}
    messages = [system, *ask("q")]
    num_prompt = len(QWEN.processor(messages).token_ids)
    engine = _with_pages(QWEN, -(-num_prompt // 8) + 1, page_size=8)
    got = engine.generate([messages], Sampling(loop_guard=False, temperature=1.0, seed=0))[0]
    assert got.finish_reason == "length"
    assert num_prompt + len(got.token_ids) == engine.pool.num_pages * 8


def test_a_cache_of_less_than_two_pages_is_refused() -> None:
    page_bytes = PagedCache.page_bytes(QWEN.model.config.decoder, 16, "float32")
    with pytest.raises(ConfigError, match=f"two pages of 16 tokens need {2 * page_bytes}"):
        Engine(QWEN, EngineConfig(cache_bytes=2 * page_bytes - 1))


@pytest.mark.parametrize(
    "settings",
    [
        {"page_size": 0},
        {"max_running": 0},
        {"max_step_tiles": 0},
        {"max_running": 10, "max_step_tokens": 9},
        {"cache_bytes": 10},
        {"vision_bytes": -1},
    ],
)
def test_budgets_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="EngineConfig"):
        EngineConfig(**settings)


def test_aborted_anywhere_it_leaves_nothing_and_its_neighbours_go_on() -> None:
    sampling = Sampling(max_new_tokens=10, loop_guard=False)
    expected = [_simple(QWEN, messages, sampling) for messages in ASKED]
    for steps in range(5):
        for victim in range(4):
            engine = Engine(QWEN, EngineConfig(max_running=2, max_step_tokens=16, page_size=4))
            tickets = [engine.submit(messages, sampling) for messages in ASKED]
            for _ in range(steps * 4):
                engine.step()
            ended = tickets[victim].done
            engine.abort(tickets[victim])
            engine.abort(tickets[victim])
            _finish(engine)
            for number, (ticket, answer) in enumerate(zip(tickets, expected, strict=True)):
                assert ticket.generation is not None
                if number == victim and not ended:
                    assert ticket.generation.finish_reason == "abort" and ticket.generation.error is None
                    assert answer.text.startswith(ticket.generation.text.rstrip("\ufffd"))
                else:
                    _same(ticket.generation, answer)


def test_an_interrupted_batch_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, original, steps = Engine(QWEN), Engine.step, iter(range(100))

    def step(self: Engine) -> bool:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(ASKED)
    _well(engine)


def test_an_engine_with_nothing_to_do_does_nothing() -> None:
    engine = Engine(QWEN)
    assert engine.step() is False and not engine.busy and engine.generate([]) == []


def test_stats_count_what_was_done() -> None:
    engine = Engine(QWEN)
    answers = engine.generate(ASKED, Sampling(max_new_tokens=5))
    stats = engine.stats()
    assert stats["requests"] == 4 and stats["waiting"] == stats["running"] == 0
    assert stats["prompt_tokens"] == sum(answer.usage.prompt_tokens for answer in answers)
    assert stats["said_tokens"] == sum(answer.usage.completion_tokens for answer in answers)
    assert stats["cached_tokens"] == sum(answer.usage.cached_tokens for answer in answers)
    assert all({"preprocess_s", "first_token_s", "decode_s"} == set(answer.timings) for answer in answers)


def test_the_urgent_are_answered_first() -> None:
    engine = Engine(QWEN, EngineConfig(max_running=1))
    sampling = Sampling(max_new_tokens=4, loop_guard=False)
    tickets: list[Ticket] = [engine.submit("q", sampling, priority=priority) for priority in (0, 0, 2, 1)]
    order: list[int] = []
    while engine.busy:
        engine.step()
        order += [n for n, ticket in enumerate(tickets) if ticket.done and n not in order]
    assert order == [2, 3, 0, 1]


def test_threads_that_share_an_engine_get_the_answers_of_one() -> None:
    sampling = Sampling(max_new_tokens=20, loop_guard=False)
    questions = [ask(f"Say {number}.") for number in range(24)]
    expected = [generation.text for generation in Engine(QWEN).generate(questions, sampling)]
    engine = Engine(QWEN)

    def streamed(messages: Any) -> str:
        return "".join(engine.stream(engine.submit(messages, sampling)))

    def whole(messages: Any) -> str:
        return engine.generate([messages], sampling)[0].text

    with ThreadPoolExecutor(3) as pool:
        got = [pool.submit((streamed, whole)[number % 2], each) for number, each in enumerate(questions)]
        assert [each.result(60) for each in got] == expected
    _finish(engine)
