"""The Responses API: what is read of it is what a chat would ask, what is told of it are its events, in order."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from cascadevl.core.generation import Constraint
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.openai import Order, read_chat
from cascadevl.serving.refusals import Refused
from cascadevl.serving.response_events import ResponseReply
from cascadevl.serving.responses import read_response
from cascadevl.serving.streams import EventStream
from tests.serving.conftest import post
from tests.serving.test_tools import CALL, PARTS, SAID, SPELLINGS, events, told

URL = "data:image/png;base64,AAAA"
FUNCTION = {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}


def asked(**body: Any) -> Order:
    return read_response(json.dumps(body).encode(), ("m",), ServingConfig())


def chat(**body: Any) -> Order:
    return read_chat(json.dumps(body).encode(), ("m",), ServingConfig())


def test_a_text_is_a_question_and_instructions_are_the_system_message() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert asked(input="Hello", instructions="Be brief.").prompts == chat(messages=messages).prompts
    items = [{"role": "developer", "content": "In verse."}, {"role": "user", "content": "Hello"}]
    messages[0]["content"] = "Be brief.\n\nIn verse."
    told = asked(input=items, instructions="Be brief.").prompts[0]
    expected = chat(messages=messages).prompts[0]
    assert [(turn.role, turn.text) for turn in told.turns] == [(turn.role, turn.text) for turn in expected.turns]  # type: ignore[union-attr]


def test_items_become_the_messages_of_a_chat() -> None:
    items = [
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": URL, "detail": "low"},
                {"type": "input_image", "image_url": URL, "max_tiles": 3},
                {"type": "input_text", "text": "What?"},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {
            "type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
            "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "look", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "look", "arguments": '{"at": 1}'},
        {"type": "function_call_output", "call_id": "a", "output": "A cat."},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "A dog."}]},
    ]  # fmt: skip
    calls = [
        {"id": "a", "function": {"name": "look", "arguments": "{}"}},
        {"id": "b", "function": {"name": "look", "arguments": '{"at": 1}'}},
    ]
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
                {"type": "image_url", "image_url": URL, "max_tiles": 3},
                {"type": "text", "text": "What?"},
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Let me see."}],
            "reasoning_content": "Hm.",
            "tool_calls": calls,
        },
        {"role": "tool", "tool_call_id": "a", "content": "A cat."},
        {"role": "tool", "tool_call_id": "b", "content": "A dog."},
    ]
    tools = {"tools": [{"type": "function", **FUNCTION}]}
    chat_tools = {"tools": [{"type": "function", "function": FUNCTION}]}
    assert asked(input=items, **tools).prompts == chat(messages=messages, **chat_tools).prompts


def test_wishes_are_those_of_a_chat() -> None:
    same = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"], "presence_penalty": 1.0, "min_tokens": 2}
    schema = {"type": "object"}
    order = asked(
        input="a", max_output_tokens=7, include=["message.output_text.logprobs"], top_logprobs=2, stream=True,
        max_tiles=3, deadline_s=5, **same,
    )  # fmt: skip
    expected = chat(
        messages=[{"role": "user", "content": "a"}], max_tokens=7, logprobs=True, top_logprobs=2, stream=True,
        max_tiles=3, deadline_s=5, **same,
    )  # fmt: skip
    assert order.sampling == expected.sampling
    assert (order.stream, order.max_tiles, order.deadline_s) == (True, 3, 5)
    format = {"type": "json_schema", "name": "a", "schema": schema, "strict": True}
    assert asked(input="a", text={"format": format}).sampling.constraint == Constraint("json_schema", schema)
    forced = {"tool_choice": "required", "tools": [{"type": "function", **FUNCTION}]}
    constraint = asked(input="a", **forced).sampling.constraint
    assert constraint is not None
    assert constraint.kind == "tool_calls"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"input": "a", "store": True}, "Nothing is stored here"),
        ({"input": "a", "previous_response_id": "resp_1"}, "Nothing is stored here"),
        ({"input": "a", "conversation": "conv_1"}, "Nothing is stored here"),
        ({"input": "a", "background": True}, "ask for a stream"),
        ({"input": "a", "max_tokens": 5}, "Did you mean 'max_output_tokens'"),
        ({"input": "a", "messages": []}, "Unknown field 'messages'"),
        ({"input": "a", "reasoning": {"effort": "high"}}, "system prompt"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "a", "tools": [{"type": "function", "name": "a", "parametres": {}}]}, "Did you mean 'parameters'"),
        ({"input": "a", "text": {"format": {"type": "json_schema"}}}, "needs a schema"),
        ({"input": "a", "text": {"fromat": {}}}, "Did you mean 'format'"),
        ({"input": "a", "top_logprobs": 2}, "needs include"),
        ({"input": "a", "include": ["reasoning.encrypted_content"]}, "include"),
        ({"input": "a", "stream": True, "stream_options": {"include_usage": True}}, "last event"),
        ({"input": []}, "at least one user message"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "send the item itself"),
        ({"input": [{"type": "computer_call"}]}, "known are message"),
        ({"input": [{"role": "user"}]}, "needs the field 'content'"),
        ({"input": [{"role": "user", "content": "a", "colour": 1}]}, "Unknown field 'input.0.colour'"),
        ({"input": [{"role": "user", "contnet": "a"}]}, "Did you mean 'content'"),
        ({"input": [{"role": ["user"], "content": "a"}]}, "expected system"),
        ({"input": [{"role": "user", "content": 5}]}, "list of parts"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "unknown part"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "'text' must be a string"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "not stored here"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b", "arguments": "["}]}, "tool_calls"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, "which no message"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_a_hint(wrong: dict[str, Any], said: str, server: Any) -> None:
    status, body, _ = post(server.url, "/v1/responses", {"max_output_tokens": 2, **wrong})
    assert status == 400
    assert said in body["error"]["message"]


def reply() -> ResponseReply:
    order = asked(input="q", stream=True, tools=[{"type": "function", **FUNCTION}])
    return ResponseReply(order, [PARTS.processor("q")], "m", SPELLINGS)


def kinds(chunks: list[dict[str, Any]]) -> list[str]:
    """Types of events without "response."; deltas in a row are one."""
    names = [chunk["type"].removeprefix("response.") for chunk in chunks]
    return [name for n, name in enumerate(names) if not n or name != names[n - 1] or not name.endswith("delta")]


ITEM_OF_TEXT = [
    "output_item.added",
    "content_part.added",
    "{}.delta",
    "{}.done",
    "content_part.done",
    "output_item.done",
]
ITEM_OF_CALL = [
    "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"
]  # fmt: skip


@given(st.lists(st.integers(0, 500), max_size=12))
def test_thoughts_text_and_calls_are_items_with_their_events_in_order(cuts: list[int]) -> None:
    chunks = asyncio.run(told(reply(), *events(SAID, cuts)))
    thought, text = ([step.format(name) for step in ITEM_OF_TEXT] for name in ("reasoning_text", "output_text"))
    expected = ["created", "in_progress", *thought, *text, *ITEM_OF_CALL, *ITEM_OF_CALL, "completed"]
    assert kinds(chunks) == expected
    assert [chunk["sequence_number"] for chunk in chunks] == list(range(len(chunks)))
    by_index: dict[int, str] = {}
    for chunk in chunks:
        if "delta" in chunk:
            by_index[chunk["output_index"]] = by_index.get(chunk["output_index"], "") + chunk["delta"]
    assert by_index == {0: "A cat?", 1: "Let me see.", 2: '{"at": {"x": 1}}', 3: '{"at": {"x": 1}}'}
    final = Response.model_validate(_typed(chunks[-1]["response"]))
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert final.output_text == "Let me see."
    done = [chunk["item"] for chunk in chunks if chunk["type"] == "response.output_item.done"]
    assert done == chunks[-1]["response"]["output"]
    assert chunks[0]["response"]["output"] == []
    assert chunks[-1]["response"]["spec_hash"] == chunks[0]["response"]["spec_hash"] == PARTS.spec.hash


def _typed(response: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's type wants a count that is not known here."""
    response["usage"]["input_tokens_details"]["cache_write_tokens"] = 0
    return response


def test_the_whole_is_the_last_of_the_events() -> None:
    ended: Any = events(SAID, [])[-1]
    whole = reply().whole({0: ended.generation})
    last = asyncio.run(told(reply(), *events(SAID, [7, 30])))[-1]["response"]

    def plain(response: dict[str, Any]) -> dict[str, Any]:
        items = [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in response["output"]]
        return {**response, "output": items, "id": "", "created_at": 0, "completed_at": 0}

    assert plain(whole) == plain(last)
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]


def test_an_answer_that_was_cut_is_incomplete() -> None:
    chunks = asyncio.run(told(reply(), *events("A ca", [2], reason="length")))
    assert chunks[-1]["type"] == "response.incomplete"
    response = chunks[-1]["response"]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == [response["status"]] == ["incomplete"]


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    chunks = asyncio.run(told(reply(), *events("", [])))
    (message,) = chunks[-1]["response"]["output"]
    assert message["content"][0]["text"] == ""
    assert kinds(chunks)[2:-1] == [s.format("output_text") for s in ITEM_OF_TEXT if "delta" not in s]


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    ended: Any = events(SAID, [])[-1]
    output = reply().whole({0: ended.generation})["output"]
    results = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "x"}
        for item in output
        if item["type"] == "function_call"
    ]
    items = [{"role": "user", "content": "q"}, *output, *results]
    prompt: Any = asked(input=items).prompts[0]
    assert [turn.role for turn in prompt.turns] == ["user", "assistant", "tool", "tool"]
    assert "Let me see." in prompt.turns[1].text
    assert "A cat?" in prompt.turns[1].text
    assert '"name": "look"' in prompt.turns[1].text
    assert CALL.count("look") == 1


def test_an_error_behind_the_first_event_comes_as_one() -> None:
    async def chunks() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "response.created", "sequence_number": 0}
        raise Refused(503, "Too late.", code="deadline_exceeded")

    async def stream() -> bytes:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        asked: Any = asyncio.Event().wait
        deadline = asyncio.get_running_loop().time() + 60
        await EventStream(chunks(), deadline, ExitStack(), typed=True)({}, asked, send)
        return b"".join(message.get("body", b"") for message in sent)

    _, event, end = asyncio.run(stream()).decode().split("\n\n")
    name, data = event.split("\n")
    told = json.loads(data.removeprefix("data: "))
    assert (name, told["type"], told["sequence_number"], end) == ("event: error", "error", 1, "")
    assert told["message"] == told["error"]["message"] == "Too late."
    assert told["code"] == told["error"]["code"] == "deadline_exceeded"
