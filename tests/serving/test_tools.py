"""Tools: what is read of a request, what holds a model to a call, and how an answer with calls and thoughts is told."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.generation import Constraint, Generation, Sampling, Usage
from cascadevl.engine.constraints import token_bytes
from cascadevl.engine.simple import generate
from cascadevl.preprocessing.parse import AnswerReader
from cascadevl.serving.bodies import Function, ToolWishes
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.loop import Ended, Said
from cascadevl.serving.openai import Order, read_chat
from cascadevl.serving.refusals import Refused
from cascadevl.serving.replies import ChatReply
from cascadevl.serving.tools import call_schema, tool_use

PARTS = tiny_parts("qwen3", std=0.4)
SPELLINGS = token_bytes(PARTS.tokenizer)
POINT = {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
         "required": ["x"], "additionalProperties": False}  # fmt: skip
LOOK = Function(
    name="look",
    parameters={
        "$defs": {"point": POINT},
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/point"}, "what": {"enum": ["cat", "dog"]}},
        "required": ["at", "what"],
        "additionalProperties": False,
    },
)
WAIT = Function(name="wait", parameters={"type": "object", "properties": {}, "additionalProperties": False})
HELLO = [{"role": "user", "content": "Hello"}]


def is_look(arguments: Any) -> bool:
    return (
        set(arguments) == {"at", "what"} and arguments["at"]["x"] in range(10) and arguments["what"] in ("cat", "dog")
    )


@pytest.mark.parametrize("kind", ["tool_call", "tool_calls"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
def test_a_model_that_must_call_calls_as_its_tools_are_defined(kind: Any, temperature: float) -> None:
    constraint = Constraint(kind, call_schema([LOOK, WAIT]))
    sampling = Sampling(max_new_tokens=400, temperature=temperature, seed=1, constraint=constraint, loop_guard=False)
    *_, answer = generate(PARTS, PARTS.processor("q"), sampling)
    assert isinstance(answer, Generation)
    reader = AnswerReader(("look", "wait"))
    pieces = [*reader.push(answer.text), *reader.finish()]
    calls = [piece for piece in pieces if piece.kind == "call"]
    assert calls
    assert all(is_look(json.loads(c.text)) if c.name == "look" else json.loads(c.text) == {} for c in calls)
    if answer.finish_reason == "stop":
        assert calls == pieces
        assert kind == "tool_calls" or len(calls) == 1


def test_references_inside_parameters_are_to_the_parameters() -> None:
    schema = json.loads(call_schema([WAIT, LOOK]))
    assert schema["$defs"]["1"]["properties"]["at"] == {"$ref": "#/$defs/1/$defs/point"}
    assert schema["anyOf"][1]["properties"]["arguments"] == {"$ref": "#/$defs/1"}
    assert LOOK.parameters is not None
    assert LOOK.parameters["properties"]["at"] == {"$ref": "#/$defs/point"}, "what was sent is left as it was"


BOTH, ONE = ("look", "wait"), {"type": "function", "function": {"name": "wait"}}
ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "look"}]}
ALLOWED_CHAT = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [ONE]}}


@pytest.mark.parametrize(
    ("choice", "parallel", "names", "forced", "more_than_one"),
    [
        (None, None, BOTH, False, True),
        ("auto", False, BOTH, False, False),
        ("none", None, (), False, True),
        ("required", None, BOTH, True, True),
        ("required", False, BOTH, True, False),
        (ONE, None, ("wait",), True, False),
        ({"type": "function", "name": "look"}, True, ("look",), True, False),
        (ALLOWED, None, ("look",), True, False),
        (ALLOWED_CHAT, None, ("wait",), False, True),
    ],
)
def test_a_choice_says_what_may_and_what_must_be_called(
    choice: Any, parallel: Any, names: tuple[str, ...], forced: bool, more_than_one: bool
) -> None:
    use = tool_use([LOOK, WAIT], ToolWishes(tool_choice=choice, parallel_tool_calls=parallel))
    assert (use.names, use.forced, use.parallel) == (set(names), forced, more_than_one)
    assert (use.constraint is not None) == forced
    assert use.stop == (("</tool_call>",) if names and not forced and not more_than_one else ())
    assert [tool["function"]["name"] for tool in use.definitions] == list(names)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("perhaps", "expected 'none', 'auto'"),
        ({"type": "function", "function": {"name": "jump"}}, "'jump', which is not among"),
        ({"type": "function"}, "must name a function"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "expected"),
        ({"type": "allowed_tools", "mode": "maybe", "tools": [ONE]}, "expected"),
    ],
)
def test_a_choice_that_cannot_be_meant_is_refused(choice: Any, said: str) -> None:
    with pytest.raises(Refused, match=said):
        tool_use([LOOK], ToolWishes(tool_choice=choice))


def test_tools_are_told_to_the_model_unless_none_may_be_called() -> None:
    def order(**more: Any) -> Order:
        tools = [{"type": "function", "function": LOOK.model_dump()}]
        return read_chat(json.dumps({"messages": HELLO, "tools": tools, **more}).encode(), ("m",), ServingConfig())

    prompts: Any = order().prompts
    assert [tool["function"]["name"] for tool in prompts[0].tools] == ["look"]
    assert "strict" not in prompts[0].tools[0]["function"]
    prompts = order(tool_choice="none").prompts
    assert prompts[0].tools == []
    assert order(tool_choice="none").tools == set()


CALL = '<tool_call>\n{"name": "look", "arguments": {"at": {"x": 1}}}\n</tool_call>'
SAID = f"<think>\nA cat?\n</think>\n\nLet me see.\n{CALL}\n{CALL}"


def events(text: str, cuts: list[int], reason: Any = "stop") -> list[Said | Ended]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    token_ids = tuple(PARTS.tokenizer.encode(text))
    usage = Usage(prompt_tokens=5, completion_tokens=len(token_ids))
    ended = Ended(0, Generation(text=text, token_ids=token_ids, finish_reason=reason, usage=usage))
    return [*(Said(0, text[a:b]) for a, b in pairwise(places)), ended]


async def told(reply: Any, first: Said | Ended, *others: Said | Ended) -> list[dict[str, Any]]:
    async def rest() -> Any:
        for event in others:
            yield event

    chunks = [chunk async for chunk in reply.chunks(first, rest())]
    return [json.loads(chunk) if isinstance(chunk, str) else chunk for chunk in chunks]


def reply(stream: bool = False) -> ChatReply:
    order = Order(api="chat", prompts=(), stream=stream, tools=frozenset(["look"]), include_usage=stream)
    return ChatReply(order, [PARTS.processor("q")], "m", SPELLINGS)


def test_thoughts_and_calls_stand_beside_the_answer() -> None:
    (ended,) = [event for event in events(SAID, []) if isinstance(event, Ended)]
    whole = reply().whole({0: ended.generation})
    (choice,) = whole["choices"]
    message = choice["message"]
    assert (message["content"], message["reasoning_content"]) == ("Let me see.", "A cat?")
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "look", "arguments": '{"at": {"x": 1}}'}
    ] * 2
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert choice["finish_reason"] == "tool_calls"
    thought = len(PARTS.tokenizer.encode("<think>\nA cat?\n</think>"))
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": thought}


def test_an_answer_of_calls_alone_has_no_content() -> None:
    (choice,) = reply().whole({0: Generation(text=CALL)})["choices"]
    assert choice["message"]["content"] is None
    assert "reasoning_content" not in choice["message"]


def test_an_answer_that_was_cut_says_so_even_behind_a_call() -> None:
    (choice,) = reply().whole({0: Generation(text=f"{CALL}\nand", finish_reason="length")})["choices"]
    assert choice["finish_reason"] == "length"
    assert (choice["message"]["content"], len(choice["message"]["tool_calls"])) == ("and", 1)


@given(st.lists(st.integers(0, 500), max_size=12))
def test_a_stream_tells_the_same_in_deltas(cuts: list[int]) -> None:
    chunks = asyncio.run(told(reply(stream=True), *events(SAID, cuts)))
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    deltas = [choice["delta"] for choice in choices]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "A cat?"
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    heads, bodies = calls[::2], calls[1::2]
    assert [(call["index"], call["type"], call["function"]) for call in heads] == [
        (number, "function", {"name": "look", "arguments": ""}) for number in (0, 1)
    ]
    assert len({call["id"] for call in heads}) == 2
    assert bodies == [{"index": number, "function": {"arguments": '{"at": {"x": 1}}'}} for number in (0, 1)]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["tool_calls"]
    assert chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    assert {chunk["spec_hash"] for chunk in chunks} == {PARTS.spec.hash}
