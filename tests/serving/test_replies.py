"""Chunks that are written before their text is there."""

import json

import pytest

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.generation import Sampling
from cascadevl.engine.constraints import token_bytes
from cascadevl.serving.loop import Said
from cascadevl.serving.openai import Order
from cascadevl.serving.replies import ChatReply, CompletionReply

PARTS = tiny_parts("qwen3")
SPELLINGS = token_bytes(PARTS.tokenizer)


@pytest.mark.parametrize("kind", [ChatReply, CompletionReply])
@pytest.mark.parametrize("include_usage", [False, True])
def test_a_chunk_of_text_is_what_would_be_written_anew(kind, include_usage):
    order = Order(api="chat", prompts=("q",), sampling=Sampling(), num=2, stream=True, include_usage=include_usage)
    reply = kind(order, [PARTS.processor("q")], 'a "model"', SPELLINGS)
    for number, text in ((0, "a"), (1, 'quotes " and \\'), (1, "line\nend\0"), (0, "Käse 🧀\ud83d")):
        (written,) = reply._pieces(Said(number, text))
        assert isinstance(written, str)
        choice = {"index": number, "delta": {"content": text}} if kind is ChatReply else {"index": number, "text": text}
        assert json.loads(written) == reply._chunk(choice)
