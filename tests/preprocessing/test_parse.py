"""Thinking, answers and calls, in tags and in channels."""

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.preprocessing.parse import AnswerReader, ChannelReader, Piece, split_thinking

ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A cat.", ("", "A cat.")),
        ("<think>Two ears.</think>\nA cat.", ("Two ears.", "A cat.")),
        ("<think>\nTwo ears.\n</think>\n\nA cat.\n", ("Two ears.", "A cat.")),
        ("Two ears.</think>A cat.", ("Two ears.", "A cat.")),  # the prompt opened the thinking
        ("<think>Two ea", ("Two ea", "")),  # cut off
        ("Write <think> in HTML.", ("", "Write <think> in HTML.")),
        (f"{FINAL}A cat.", ("", "A cat.")),
        (f"{FINAL}A cat.<|return|>", ("", "A cat.")),
        (f"{ANALYSIS}Two ears.<|end|><|start|>assistant{FINAL}A cat.<|return|>", ("Two ears.", "A cat.")),
        (f"{ANALYSIS}Two ears.<|start|>assistant{FINAL}A cat.", ("Two ears.", "A cat.")),  # its end left out
        (f"{ANALYSIS}Two ears", ("Two ears", "")),
        ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", ("", "{}")),
        ("<|start|>assistant<|message|>A cat.", ("", "A cat.")),
        ("", ("", "")),
    ],
)
def test_thinking_and_answer_are_told_apart(text: str, expected: tuple[str, str]) -> None:
    assert split_thinking(text) == expected


WORDS = st.text(alphabet="ab \n漢", max_size=8)


@given(WORDS, WORDS)
def test_tags_and_channels_say_the_same(thinking: str, answer: str) -> None:
    channels = f"{ANALYSIS}{thinking}<|end|><|start|>assistant{FINAL}{answer}<|return|>"
    assert split_thinking(channels) == split_thinking(f"<think>{thinking}</think>{answer}")
    assert split_thinking(channels) == (thinking.strip(), answer.strip())


def test_a_reader_shows_no_header_and_ignores_what_is_no_marker() -> None:
    reader = ChannelReader()
    shown = [reader.mark("<|channel|>"), reader.text("ana"), reader.text("lysis"), reader.mark("<|message|>")]
    shown += [reader.text("hm"), reader.mark("<img>"), reader.text("!"), reader.mark("<|end|>")]
    shown += [reader.mark("<|start|>"), reader.text("assistant"), reader.mark("<|channel|>"), reader.text("final")]
    shown += [reader.mark("<|message|>"), reader.text("Yes."), reader.mark("<|return|>")]
    assert "".join(shown) == "<think>hm!</think>\nYes."


CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "a <b>"}}\n</tool_call>'
LOOK = Piece("call", '{"at": "a <b>"}', "look")


def read(text: str, cuts: list[int] | None = None, tools: tuple[str, ...] = ("look",)) -> list[Piece]:
    """Pieces of a text that comes in one or, cut at places, in several; neighbours of one kind joined."""
    reader, places = AnswerReader(tools), sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts or ())})
    found = [piece for a, b in pairwise(places) for piece in reader.push(text[a:b])]
    joined = []
    for kind, group in groupby([*found, *reader.finish()], key=lambda piece: piece.kind):
        pieces = list(group)
        joined += pieces if kind == "call" else [Piece(pieces[0].kind, "".join(piece.text for piece in pieces))]
    return joined


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" A cat. ", [Piece("text", " A cat. ")]),
        ("<think>\nTwo ears.\n</think>\n\nA cat.", [Piece("thinking", "Two ears."), Piece("text", "A cat.")]),
        ("<think>a</think><think>b</think>c", [Piece("thinking", "a\nb"), Piece("text", "c")]),
        ("<think>Two ea", [Piece("thinking", "Two ea")]),
        ("<think></think>A cat.", [Piece("text", "A cat.")]),
        ("Write <think> in HTML.", [Piece("text", "Write <think> in HTML.")]),
        (CALL, [LOOK]),
        (f"Let me see.\n{CALL}\n{CALL}\n", [Piece("text", "Let me see."), LOOK, LOOK]),
        (f"<think>Where? {CALL}</think>\n{CALL}", [Piece("thinking", f"Where? {CALL}"), LOOK]),
        (CALL.removesuffix("</tool_call>"), [LOOK]),  # a stop text took the tag
        (CALL.removesuffix("call>"), [LOOK]),  # the end of the tokens did
        ('<tool_call>{"name": "look"}</tool_call>', [Piece("call", "{}", "look")]),
        *(
            (text, [Piece("text", text)])
            for text in (
                "a\n<tool_call>{</tool_call> b",
                '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
                '<tool_call>{"name": "look", "arguments": [1]}</tool_call>',
                '<tool_call>{"name": ["look"]}</tool_call>',
                '<tool_call>{"name": "look", "arguments": {"at": NaN}}</tool_call>',
                "<tool_call>[1]</tool_call>",
                '<tool_call>{"name": "lo',
                "a <tool_",
                " ",
            )
        ),
    ],
)
def test_thinking_text_and_calls_are_told_apart(text: str, expected: list[Piece]) -> None:
    assert read(text) == expected


def test_without_tools_a_call_is_text() -> None:
    assert read(CALL, tools=()) == [Piece("text", CALL)]


def test_a_lone_surrogate_in_a_call_stays_an_escape() -> None:
    (call,) = read(r'<tool_call>{"name": "look", "arguments": {"at": "\ud800"}}</tool_call>')
    assert call.text == r'{"at": "\ud800"}'
    call.text.encode()


FRAGMENTS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "look"}', CALL, "<", "a", " ", "\n"]
    ),
    max_size=8,
).map("".join)


@given(FRAGMENTS, st.lists(st.integers(0, 500), max_size=20))
def test_in_whatever_pieces_an_answer_comes_it_is_read_the_same(text: str, cuts: list[int]) -> None:
    assert read(text, cuts) == read(text)


@given(FRAGMENTS.filter(lambda text: not text.endswith("<")))  # which may be the beginning of a tag
def test_nothing_that_was_said_is_lost(text: str) -> None:
    """But white space, the tags of thinking, and what a call says in JSON."""

    def letters(said: str) -> str:
        return "".join(said.replace("<think>", "").replace("</think>", "").split())

    calls = [f'<tool_call>{{"name": "look"{_arguments(piece)}}}</tool_call>' for piece in read(text)]
    shown = [call if piece.kind == "call" else piece.text for call, piece in zip(calls, read(text), strict=True)]
    assert letters("".join(shown)) in (letters(text), letters(text) + letters("</tool_call>"))


def _arguments(piece: Piece) -> str:
    return f', "arguments": {piece.text}' if piece.text != "{}" else ""
