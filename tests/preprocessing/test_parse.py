"""Thinking and answers, in tags and in channels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.preprocessing.parse import ChannelReader, split_thinking

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
