"""Constrained output: whatever a random model wants to say, what it says is what was asked for."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.config import evolve, from_dict, to_dict
from cascadevl.core.errors import ConfigError, MissingExtra
from cascadevl.core.generation import Constraint, Generation, Sampling
from cascadevl.engine.constraints import MOST_CHARACTERS, Guide, token_bytes
from cascadevl.engine.engine import Engine
from cascadevl.engine.simple import generate
from cascadevl.preprocessing.tokenizer import TextTokenizer
from tests.preprocessing import sentencepiece_folders

PARTS = tiny_parts("qwen3", std=0.4)
ENGINE = Engine(PARTS)
RECEIPT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "shop": {"type": "string", "maxLength": 12},
        "total": {"type": "number", "minimum": 0, "maximum": 999},
        "paid": {"type": "boolean"},
        "lines": {"type": "array", "items": {"enum": ["bread", "milk", "漢字"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["shop", "total", "paid", "lines"],
    "additionalProperties": False,
}
CHOICES = ("yes", "no", "yes, indeed", "größer", '"quoted"\n')
REGEXES = (r"\d{2}-[A-F]+", r"(left|right) (\d+,\d+)(;(\d+,\d+)){0,3}", r"[äöü/\"]{1,5}\.", r"a*b?")


def _say(constraint: Constraint, parts: Parts = PARTS, **sampling: Any) -> Generation:
    """By the simple generator."""
    settings_: dict[str, Any] = {"max_new_tokens": 400, "loop_guard": False, "temperature": 1.0, **sampling}
    *_, generation = generate(parts, parts.processor("q"), Sampling(constraint=constraint, **settings_))
    assert isinstance(generation, Generation)
    return generation


def _is_receipt(text: str) -> bool:
    said = json.loads(text)
    return (
        list(said) == ["shop", "total", "paid", "lines"]
        and isinstance(said["shop"], str) and len(said["shop"]) <= 12
        and 0 <= said["total"] <= 999
        and isinstance(said["paid"], bool)
        and 1 <= len(said["lines"]) <= 3 and set(said["lines"]) <= {"bread", "milk", "漢字"}
    )  # fmt: skip


def _walk(constraint: Constraint, seed: int, temperature: float) -> tuple[str, bool]:
    """What random logits say of at most 300 tokens, and whether it is whole: a model that knows nothing."""
    guide, ids = Guide(constraint, PARTS.tokenizer, PARTS.stop_ids), list[int]()
    generator = torch.Generator().manual_seed(seed)
    while not guide.finished and (not ids or ids[-1] not in PARTS.stop_ids):
        if len(ids) == 300:
            return PARTS.tokenizer.decode(ids), False
        logits_V = torch.randn(272, generator=generator) / temperature
        guide.mask(logits_V)
        ids.append(int(torch.multinomial(logits_V.softmax(-1), 1, generator=generator)))
        guide.push(ids[-1])
    return PARTS.tokenizer.decode(ids), True


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 3.0]))
def test_json_always_fits_its_schema(seed: int, temperature: float) -> None:
    text, whole = _walk(Constraint("json_schema", RECEIPT), seed, temperature)
    assert _is_receipt(text) or not whole


@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 2.0]), st.sampled_from(REGEXES))
def test_an_answer_matches_its_regex_as_a_whole(seed: int, temperature: float, regex: str) -> None:
    text, whole = _walk(Constraint("regex", regex), seed, temperature)
    assert re.fullmatch(regex, text) or not whole


def test_most_answers_end_by_themselves() -> None:
    """Else the two tests above could not fail."""
    for constraint in (Constraint("json_schema", RECEIPT), *(Constraint("regex", regex) for regex in REGEXES)):
        assert sum(_walk(constraint, seed, 1.0)[1] for seed in range(20)) >= 15


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_says_what_fits(temperature: float) -> None:
    said = [_say(Constraint("json_schema", RECEIPT), seed=seed, temperature=temperature) for seed in range(3)]
    whole = [generation for generation in said if generation.finish_reason == "stop"]
    assert all(_is_receipt(generation.text) for generation in whole)
    assert len(whole) + [generation.finish_reason for generation in said].count("length") == len(said)


def test_choices_are_all_said_and_nothing_else_is() -> None:
    said = {_say(Constraint("choices", CHOICES), seed=seed, temperature=5.0).text for seed in range(50)}
    assert said == set(CHOICES)


def test_thousands_of_choices_are_followed() -> None:
    choices = tuple(f"choice {n}" for n in range(3000))
    said = {_say(Constraint("choices", choices), seed=seed, temperature=2.0).text for seed in range(5)}
    assert len(said) > 1 and said <= set(choices)


def test_greedy_takes_the_likeliest_that_is_allowed() -> None:
    """By hand: the first token of a choice is that with the greatest logit among their first letters."""
    inputs = PARTS.processor("q")
    with torch.no_grad():
        logits_V = PARTS.model(inputs.token_ids)[-1]
    firsts = ["a", "b", "c", "d"]
    likeliest = max(firsts, key=lambda letter: float(logits_V[PARTS.tokenizer.encode(letter)[0]]))
    generation = _say(Constraint("choices", firsts), temperature=0.0)
    assert generation.text == likeliest


def test_an_answer_that_can_only_end_there_ends_at_once() -> None:
    generation = _say(Constraint("choices", ("yes",)), max_new_tokens=3)
    assert (generation.text, generation.finish_reason, len(generation.token_ids)) == ("yes", "stop", 3)


def test_an_answer_that_might_go_on_ends_by_the_stop_token() -> None:
    said = [_say(Constraint("choices", ("yes", "yes!")), seed=seed, temperature=9.0) for seed in range(40)]
    short = next(generation for generation in said if generation.text == "yes")
    assert short.token_ids[-1] in PARTS.stop_ids
    assert {generation.text for generation in said} == {"yes", "yes!"}


def test_a_cut_answer_says_so_and_is_the_beginning_of_a_whole_one() -> None:
    generation = _say(Constraint("json_schema", RECEIPT), max_new_tokens=9)
    assert generation.finish_reason == "length"
    assert generation.text.lstrip().startswith("{")
    assert '{"shop":"'.startswith(re.sub(r"\s", "", generation.text))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_engine_says_what_the_simple_generator_says(temperature: float) -> None:
    """Beside requests without a constraint, whose answers do not change."""
    constraints = [Constraint("json_schema", RECEIPT), Constraint("regex", REGEXES[1]), Constraint("choices", CHOICES)]
    tickets = []
    for seed, constraint in enumerate([*constraints, None, *constraints]):
        sampling = Sampling(max_new_tokens=60, temperature=temperature, seed=seed, constraint=constraint, logprobs=3)
        tickets.append((sampling, ENGINE.submit("q", sampling)))
    while ENGINE.busy:
        ENGINE.step()
    for sampling, ticket in tickets:
        *_, expected = generate(PARTS, PARTS.processor("q"), sampling)
        assert isinstance(expected, Generation)
        got = ticket.generation
        assert got is not None and got.error is None
        assert (got.text, got.token_ids, got.finish_reason) == (
            expected.text,
            expected.token_ids,
            expected.finish_reason,
        )
        assert got.logprobs is not None and expected.logprobs is not None
        for ours, theirs in zip(got.logprobs, expected.logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert all(value > -1e9 for _, value in ours.top), "what was banned is not among the likely"


def test_unbanned_probabilities_sum_to_one() -> None:
    generation = _say(Constraint("choices", ("yes", "no", "maybe")), logprobs=20)
    assert generation.logprobs is not None
    first = generation.logprobs[0]
    assert len(first.top) == 3
    assert sum(pow(2.718281828, value) for _, value in first.top) == pytest.approx(1, abs=1e-4)


BAD = {
    "not JSON": Constraint("json_schema", "{"),
    "no object": Constraint("json_schema", "[1]"),
    "a type that does not exist": Constraint("json_schema", {"type": "strng"}),
    "unsupported": Constraint("json_schema", {"type": "array", "uniqueItems": True}),
    "hidden options": Constraint(
        "json_schema",
        {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}},
    ),
    "remote": Constraint("json_schema", {"$ref": "http://localhost/schema"}),
    "contradiction": Constraint("json_schema", {"type": "integer", "minimum": 3, "maximum": 1}),
    "no end": Constraint("json_schema", {"$ref": "#"}),
    "unclosed": Constraint("regex", "(a"),
    "half an escape": Constraint("regex", "a\\"),
    "look-ahead": Constraint("regex", "(?=a)b"),
    "nothing": Constraint("regex", r"[^\s\S]"),
    "too long": Constraint("choices", tuple(f"choice {n}" for n in range(MOST_CHARACTERS // 6))),
    "too deep": Constraint("json_schema", '{"items":' * 6000 + "{}" + "}" * 6000),
}


@pytest.mark.parametrize("name", BAD)
def test_a_constraint_that_cannot_be_used_fails_alone(name: str) -> None:
    with pytest.raises(ConfigError, match=r"constraint|schema|regex|choices"):
        ENGINE.submit("q", Sampling(constraint=BAD[name]))
    assert not ENGINE.busy
    assert ENGINE.generate(["q"], Sampling(max_new_tokens=3))[0].error is None


def test_what_is_our_syntax_means_itself_in_a_regex() -> None:
    assert _say(Constraint("regex", 'a/ | "b')).text in ("a/ ", ' "b')
    assert _say(Constraint("regex", 'a/\\n\nstart: "b')).text == 'a/\n\nstart: "b'


def test_unsupported_features_are_named() -> None:
    with pytest.raises(ConfigError, match="uniqueItems"):
        Guide(BAD["unsupported"], PARTS.tokenizer, PARTS.stop_ids)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *[("grammar", "x"), ("regex", 3), ("regex", ""), ("json_schema", ["a"]), ("json_schema", {"a": {1}})],
        *[("choices", "yes"), ("choices", []), ("choices", ["a", ""]), ("choices", ["a", 1])],
    ],
)
def test_a_constraint_of_another_type_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match="Constraint"):
        Constraint(kind, value)


def test_sampling_takes_constraints_only_and_they_travel_as_json() -> None:
    with pytest.raises(ConfigError, match="constraint"):
        Sampling(constraint="a+")  # type: ignore[arg-type]
    for constraint in (Constraint("json_schema", RECEIPT), Constraint("choices", CHOICES)):
        sampling = Sampling(constraint=constraint)
        assert hash(sampling) == hash(from_dict(Sampling, json.loads(json.dumps(to_dict(sampling)))))


def test_a_grammar_that_leads_where_no_token_goes_fails_alone() -> None:
    """A vocabulary in which a letter has no token."""
    tokenizer = PARTS.tokenizer

    class Lacking(TextTokenizer):
        def __len__(self) -> int:
            return tokenizer.id("z")  # z and all after it are missing, among them é

    lacking = Lacking(json.loads(str(tokenizer.files["tokenizer.json"])), tokenizer.files)
    assert len(token_bytes(lacking)) == tokenizer.id("z")
    engine = Engine(evolve(PARTS, tokenizer=lacking, stop_ids=(tokenizer.id("A"),)))
    good, bad = (
        engine.submit("q", Sampling(constraint=Constraint("choices", (text,)), max_new_tokens=20))
        for text in ("cab", "caz")
    )
    while engine.busy:
        engine.step()
    assert good.generation is not None and good.generation.text == "cab"
    assert bad.generation is not None and isinstance(bad.generation.error, ConfigError)
    engine.check_integrity()


def test_a_grammar_that_grows_too_complex_fails_alone() -> None:
    """It compiles, but what may follow takes more than a step is allowed."""
    regex = "|".join(f"(.{{0,{n}}}x{n})" for n in range(800))
    bad, good = (Sampling(max_new_tokens=4, constraint=constraint) for constraint in (Constraint("regex", regex), None))
    tickets = [ENGINE.submit("q", good), ENGINE.submit("q", bad), ENGINE.submit("q", good)]
    while ENGINE.busy:
        ENGINE.step()
    first, failed, last = (ticket.generation for ticket in tickets)
    assert failed is not None and isinstance(failed.error, ConfigError)
    assert first is not None and last is not None and first.token_ids == last.token_ids
    ENGINE.check_integrity()


@pytest.mark.parametrize(
    "constraint",
    [Constraint("regex", "a{1000000}"), Constraint("json_schema", {"type": "string", "pattern": "^a{1000000}$"})],
)
def test_limits_that_end_behind_a_token_end_one_answer_and_no_neighbour(constraint: Constraint) -> None:
    engine = Engine(PARTS)
    plain = engine.submit("q", Sampling(max_new_tokens=12, ignore_eos=True, loop_guard=False))
    complex_ = engine.submit("q", Sampling(max_new_tokens=12, constraint=constraint))
    while engine.step():
        engine.check_integrity()
    assert plain.generation is not None and plain.generation.finish_reason == "length"
    assert complex_.generation is not None and isinstance(complex_.generation.error, ConfigError)
    assert "cannot be followed any further" in str(complex_.generation.error)
    with pytest.raises(ConfigError, match="cannot be followed any further"):
        _say(constraint)


def test_an_expression_that_would_hold_up_everybody_is_refused() -> None:
    """A quarter of a million states: more than a second for its first mask, which others would wait for."""
    with pytest.raises(ConfigError, match=r"too many expressions constructed$"):
        _say(Constraint("regex", "(a{500}){500}"), max_new_tokens=4)


def test_the_bytes_of_all_tokens_are_those_of_the_text() -> None:
    text = "漢字 é\n\tq <box>"
    ids = PARTS.tokenizer.encode(text)
    entries = token_bytes(PARTS.tokenizer)
    assert b"".join(entries[i] for i in ids).decode() == text
    assert sorted(entries[:256]) == [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize("folder", ["internlm2", "yi"])
@pytest.mark.parametrize("regex", ["(yes|no|größer){2}", " ?(a|b)c", '"[a-z]{3}" 漢'])
def test_sentencepiece_answers_match_too(tmp_path: Path, folder: str, regex: str) -> None:
    tokenizer = TextTokenizer.from_folder(getattr(sentencepiece_folders, folder)(tmp_path))
    stop = tokenizer.controls.get("<|im_end|>", tokenizer.id("</s>"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        guide, ids = Guide(Constraint("regex", regex), tokenizer, (stop,)), list[int]()
        while not guide.finished and (not ids or ids[-1] != stop):
            logits_V = torch.randn(len(tokenizer) + 3, generator=generator)
            guide.mask(logits_V)
            ids.append(int(logits_V.argmax()))
            guide.push(ids[-1])
            assert len(ids) < 100
        assert re.fullmatch(regex, tokenizer.decode(ids)), tokenizer.tokens(ids)


def test_an_answer_in_channels_is_put_in_the_final_one() -> None:
    """GPT-OSS's format: a header between control tokens, then the text."""
    definition = json.loads(str(PARTS.tokenizer.files["tokenizer.json"]))
    for name in ("<|channel|>", "<|message|>"):
        entry = {**definition["added_tokens"][-1], "content": name, "id": definition["added_tokens"][-1]["id"] + 1}
        definition["added_tokens"].append({**entry, "special": True})
    tokenizer = TextTokenizer(definition, PARTS.tokenizer.files)
    for seed in range(5):
        generation = _say(Constraint("choices", CHOICES), evolve(PARTS, tokenizer=tokenizer), seed=seed)
        assert generation.text in CHOICES
        header = tokenizer.tokens(generation.token_ids)[:7]
        assert header == ["<|channel|>", *"final", "<|message|>"]


def test_control_tokens_are_never_allowed_but_those_that_end() -> None:
    guide = Guide(Constraint("regex", r"(.|\n)*"), PARTS.tokenizer, PARTS.stop_ids)
    for token_id in PARTS.tokenizer.encode("<|im_end|>x"):
        logits_V = torch.zeros(272)
        guide.mask(logits_V)
        allowed = set(logits_V.isfinite().nonzero().flatten().tolist())
        assert allowed & set(PARTS.tokenizer.controls.values()) == set(PARTS.stop_ids)
        guide.push(token_id)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match=r"cascadevl\[constraints\]"):
        ENGINE.submit("q", Sampling(constraint=Constraint("regex", "a")))
