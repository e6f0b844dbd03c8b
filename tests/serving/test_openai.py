"""Bodies that are wrong are refused with a reason; none is answered with 500, none disturbs the others."""

import base64
import functools
import json

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from openai.types.completion_create_params import CompletionCreateParamsNonStreaming as OldParamsNonStreaming
from openai.types.completion_create_params import CompletionCreateParamsStreaming as OldParamsStreaming
from openai.types.responses.response_create_params import (
    ResponseCreateParamsNonStreaming,
    ResponseCreateParamsStreaming,
)
from PIL import Image
from pydantic import ValidationError

from cascadevl.core.messages import Conversation
from cascadevl.serving.bodies import ChatBody, CompletionBody, ResponseBody, TokenizeBody
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.fields import ANYTHING, FOREIGN, read
from cascadevl.serving.openai import read_chat, read_completion
from cascadevl.serving.refusals import Refused
from tests.serving.conftest import post, shown, url_of

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
GOOD = {"messages": HELLO, "max_tokens": 2}


TOOL = {"type": "function", "function": {"name": "a"}}
CALLED = {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "a", "arguments": "{}"}}]}
NESTED = functools.reduce(lambda inner, _: {"type": "array", "items": inner}, range(480), {})


def part(**fields):
    return {"messages": [{"role": "user", "content": [fields]}]}


def url(address):
    return part(type="image_url", image_url={"url": address})


PNG = base64.b64decode(url_of(Image.new("RGB", (64, 64))).partition(",")[2])


def png(data):
    return url("data:image/png;base64," + base64.b64encode(data).decode())


WRONG = {
    "nothing": b"",
    "no json": b"{",
    "no utf-8": b'{"messages": "\xff\xfe"}',
    "no object": b"[1, 2]",
    "nested without end": b"[" * 100_000,
    "a lone surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "a lone surrogate as a key": b'{"messages": [{"role": "user", "content": "a"}], "\\udfff": 1}',
    "no number": b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    "infinity": b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
    "a number of 5000 digits": b'{"messages": [{"role": "user", "content": "a"}], "seed": ' + b"9" * 5000 + b"}",
    "no messages": {},
    "null messages": {"messages": None},
    "empty messages": {"messages": []},
    "messages as text": {"messages": "hello"},
    "a message as text": {"messages": ["hello"]},
    "an empty message": {"messages": [{}]},
    "a role nobody has": {"messages": [{"role": "wizard", "content": "a"}]},
    "a role that is a list": {"messages": [{"role": ["user"], "content": "a"}]},
    "a role that is an object": {"messages": [{"role": {}, "content": "a"}]},
    "content that is a number": {"messages": [{"role": "user", "content": 3}]},
    "content that is an object": {"messages": [{"role": "user", "content": {"type": "text", "text": "a"}}]},
    "an empty question": {"messages": [{"role": "user", "content": ""}]},
    "the assistant last": {"messages": [*HELLO, {"role": "assistant", "content": "a"}]},
    "a system message in the middle": {"messages": [*HELLO, {"role": "system", "content": "a"}]},
    "a part of no type": part(text="a"),
    "a part of an unknown type": part(type="smell", smell="a"),
    "a text that is a number": part(type="text", text=5),
    "an image without url": part(type="image_url", image_url={}),
    "an image that is a number": part(type="image_url", image_url=5),
    "an image that is a list": part(type="image_url", image_url=[1, 2]),
    "an url that is a number": part(type="image_url", image_url={"url": 7}),
    "a detail nobody has": part(type="image_url", image_url={"url": "data:,", "detail": "ultra"}),
    "a picture given as a path": part(type="image", image="/etc/passwd"),
    "a path as an url": url("/etc/passwd"),
    "a file": url("file:///etc/passwd"),
    "http": url("http://127.0.0.1:1/a.png"),
    "https": url("https://example.com/a.png"),
    "ftp": url("ftp://example.com/a.png"),
    "an empty data url": url("data:image/png;base64,"),
    "a data url without base64": url("data:image/png,abc"),
    "base64 that is none": url("data:image/png;base64,@@@@"),
    "bytes that are no picture": png(b"hello"),
    "a picture cut off": png(PNG[: len(PNG) // 2]),
    "a header alone": png(PNG[:8]),
    "a video cut off": part(type="video_url", video_url={"url": "data:video/mp4;base64,AAAA"}),
    "frames that are paths": part(type="video", video=["/etc/passwd"]),
    "frames that are numbers": part(type="video", video=[1]),
    "no frames": part(type="video", video=[]),
    "tiles below one": {**GOOD, "max_tiles": 0},
    "too many tiles": {**GOOD, "max_tiles": 10**9},
    "too many tiles of a picture": part(type="image_url", image_url={"url": "data:,"}, max_tiles=10**9),
    "no tokens": {**GOOD, "max_tokens": 0},
    "tokens as text": {**GOOD, "max_tokens": "5"},
    "two numbers of tokens": {**GOOD, "max_completion_tokens": 3},
    "cold": {**GOOD, "temperature": -1},
    "hot": {**GOOD, "temperature": 3},
    "top_p of nothing": {**GOOD, "top_p": 0},
    "a true temperature": {**GOOD, "temperature": True},
    "n of nothing": {**GOOD, "n": 0},
    "n beyond measure": {**GOOD, "n": 10**12},
    "a seed beyond measure": {**GOOD, "seed": 2**80},
    "an empty stop": {**GOOD, "stop": ""},
    "stops that are numbers": {**GOOD, "stop": [1]},
    "stops without end": {**GOOD, "stop": ["a"] * 1000},
    "top_logprobs alone": {**GOOD, "top_logprobs": 2},
    "too many logprobs": {**GOOD, "logprobs": True, "top_logprobs": 21},
    "stream options without a stream": {**GOOD, "stream_options": {"include_usage": True}},
    "a stream that is a text": {**GOOD, "stream": "yes"},
    "a format nobody has": {**GOOD, "response_format": {"type": "xml"}},
    "a schema that is missing": {**GOOD, "response_format": {"type": "json_schema"}},
    "a schema that is a text": {**GOOD, "response_format": {"type": "json_schema", "json_schema": {"schema": "a"}}},
    "a schema that refers to nothing": {
        **GOOD, "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/$defs/none"}}},
    },
    "a tool without a name": {**GOOD, "tools": [{"type": "function", "function": {}}]},
    "a tool whose name is a sentence": {**GOOD, "tools": [{"type": "function", "function": {"name": "look up"}}]},
    "a tool that is no function": {**GOOD, "tools": [{"type": "custom", "custom": {"name": "a"}}]},
    "a tool twice": {**GOOD, "tools": [TOOL, TOOL]},
    "tools without end": {**GOOD, "tools": [TOOL] * 1000},
    "a choice that nobody has": {**GOOD, "tools": [TOOL], "tool_choice": "perhaps"},
    "a choice of no name": {**GOOD, "tools": [TOOL], "tool_choice": {"type": "function"}},
    "a choice that is not there": {
        **GOOD, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "b"}},
    },
    "a call without tools": {**GOOD, "tool_choice": "required"},
    "a call and a schema": {**GOOD, "tools": [TOOL], "response_format": {"type": "json_object"}},
    "parameters that are no schema": {
        **GOOD, "tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "nonsense"}}}],
        "tool_choice": "required",
    },
    "parameters nested without end": {
        **GOOD, "tools": [{"type": "function", "function": {"name": "a", "parameters": NESTED}}],
        "tool_choice": "required",
    },
    "a result of no call": {"messages": [*HELLO, {"role": "tool", "tool_call_id": "x", "content": "a"}]},
    "a result without its call": {"messages": [*HELLO, CALLED, {"role": "tool", "content": "a"}]},
    "a result that is a picture": {
        "messages": [*HELLO, CALLED, {"role": "tool", "tool_call_id": "x", "content": shown(Image.new("L", (9, 9)))}],
    },
    "calls of the user": {"messages": [{**CALLED, "role": "user", "content": "a"}]},
    "calls that are a text": {"messages": [*HELLO, {"role": "assistant", "tool_calls": "a"}, *HELLO]},
    "a call without arguments": {
        "messages": [*HELLO, {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "a"}}]}, *HELLO],
    },
    "arguments that are no object": {
        "messages": [
            *HELLO,
            {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "a", "arguments": "[1]"}}]},
            *HELLO,
        ],
    },
    "a penalty beyond measure": {**GOOD, "frequency_penalty": 2.5},
    "a bias beyond measure": {**GOOD, "logit_bias": {"5": 101}},
    "a bias of a word": {**GOOD, "logit_bias": {"yes": 1}},
    "a bias of no token": {**GOOD, "logit_bias": {"999999": 1}},
    "a bias towards a control token": {**GOOD, "logit_bias": {"257": 1}},
    "more tokens than there may be": {**GOOD, "min_tokens": 3},
    "a schema without an end": {**GOOD, "ignore_eos": True, "response_format": {"type": "json_object"}},
    "what is to be stored": {**GOOD, "store": True},
    "a field nobody has": {**GOOD, "colour": "red"},
    "a prompt that is too long": {**GOOD, "messages": [{"role": "user", "content": "word " * 20_000}]},
    "a deadline in the past": {**GOOD, "deadline_s": -1},
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_body_is_refused_with_a_reason(name, server):
    status, body, _ = post(server.url, CHAT, WRONG[name])
    assert status == 400, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"


def test_after_all_that_the_server_answers_as_before(server):
    assert post(server.url, CHAT, GOOD)[0] == 200
    assert server.service.loop.problem() is None
    assert server.service.loop.num_failed_steps == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    *GOOD,
    "tool_choice",
    "logit_bias",
    "presence_penalty",
    "n",
    "stop",
    "seed",
    "logprobs",
    "top_k",
    "response_format",
    "stream_options",
    "tools",
    "role",
]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3), content=JSON)
def test_no_body_is_answered_with_500(server, changes, content):
    for body in ({**GOOD, **changes}, {**GOOD, "messages": [{"role": "user", "content": content}]}):
        assert post(server.url, CHAT, body)[0] in (200, 400)
    assert post(server.url, "/v1/completions", {"prompt": content, "max_tokens": 1})[0] in (200, 400)
    assert post(server.url, "/tokenize", {"messages": content})[0] in (200, 400)
    for items in (content, [content], [{"role": "user", "content": content}], [{"type": "function_call", **changes}]):
        assert post(server.url, "/v1/responses", {"input": items, "max_output_tokens": 1})[0] in (200, 400)


@pytest.mark.parametrize(
    ("field", "near"), [("max_token", "max_tokens"), ("temprature", "temperature"), ("maxtiles", "max_tiles")]
)
def test_an_unknown_field_comes_with_a_hint(field, near, server, parts):
    with pytest.raises(openai.BadRequestError, match=f"Did you mean '{near}'") as raised:
        server.client.chat.completions.create(model=parts.name, messages=HELLO, extra_body={field: 1})
    assert (raised.value.code, raised.value.param) == ("unknown_field", field)


@pytest.mark.parametrize(
    ("body", "params"),
    [
        (ChatBody, (CompletionCreateParamsNonStreaming, CompletionCreateParamsStreaming)),
        (CompletionBody, (OldParamsNonStreaming, OldParamsStreaming)),
        (ResponseBody, (ResponseCreateParamsNonStreaming, ResponseCreateParamsStreaming)),
    ],
)
def test_every_field_that_the_official_client_sends_is_read_or_in_the_table(body, params):
    documented = {field for kind in params for field in kind.__annotations__}
    documented |= {field for kind in params for base in kind.__orig_bases__ for field in base.__annotations__}
    assert {"model", "stream"} < documented
    assert not documented - body.model_fields.keys() - FOREIGN.keys()


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_here_is_refused_with_a_hint_and_null_never_is(name):
    taken, hint = FOREIGN[name]
    kind = next(kind for kind in (ResponseBody, ChatBody, CompletionBody) if name not in kind.model_fields)
    needed = {ResponseBody: {"input": "a"}, ChatBody: GOOD, CompletionBody: {"prompt": "a"}}[kind]

    def body(value):
        return json.dumps({**needed, name: value}).encode()

    values = ["anything", {"a": 1}] if taken == ANYTHING else taken
    assert all(read(kind, body(value), "nano") for value in (None, *values))
    if taken != ANYTHING:
        with pytest.raises(Refused, match="not supported") as raised:
            read(kind, body({"something": 5}), ("nano",))
        assert hint in str(raised.value)
        assert (raised.value.code, raised.value.param) == ("unsupported", name)


def test_a_true_value_is_no_number():
    with pytest.raises(Refused, match="not supported"):
        read(CompletionBody, b'{"prompt": "a", "best_of": true}', ("nano",))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a", "parametres": {}}}]}, "Did you mean 'parameters'"),
        ({"stream_options": {"includ_usage": True}}, "Did you mean 'include_usage'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schemas": {}}}}, "Did you mean 'schema'"),
        ({"max_output_tokens": 5}, "Did you mean 'max_completion_tokens'"),
        ({"input": "a"}, "Did you mean 'messages'"),
    ],
)
def test_hints_reach_into_objects_and_know_other_names(body, said):
    with pytest.raises(Refused, match=said):
        read_chat(json.dumps({**GOOD, **body}).encode(), ("nano",), ServingConfig())


def test_penalties_bias_and_the_end_become_sampling():
    body = {**GOOD, "max_tokens": 9, "presence_penalty": 1, "frequency_penalty": -0.5, "logit_bias": {"7": 2, "3": -1}}
    sampling = read_chat(json.dumps({**body, "min_tokens": 4}).encode(), ("nano",), ServingConfig()).sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -0.5)
    assert (sampling.logit_bias, sampling.min_new_tokens) == (((3, -1.0), (7, 2.0)), 4)
    assert not sampling.loop_guard, "who wants so many tokens wants them even if they repeat themselves"
    endless = read_chat(
        json.dumps({**GOOD, "ignore_eos": True, "loop_guard": True}).encode(), ("nano",), ServingConfig()
    )
    assert (endless.sampling.ignore_eos, endless.sampling.loop_guard) == (True, True)


def test_fields_that_ask_for_nothing_are_taken(server, parts):
    answer = server.client.chat.completions.create(
        model=parts.name, messages=HELLO, max_tokens=1, frequency_penalty=0.0, presence_penalty=0, logit_bias={},
        tools=[], tool_choice="auto", user="me",
        metadata={"a": "b"}, store=False, parallel_tool_calls=True, response_format={"type": "text"}, stop=None,
        seed=None,
    )  # fmt: skip
    assert answer.choices


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://169.254.169.254/latest/meta-data", "fetches nothing"),
        ("https://example.com/a.png", "fetches nothing"),
        ("file:///etc/passwd", "files of the server are off"),
        ("/etc/passwd", "no address"),
    ],
)
def test_nothing_is_fetched_and_no_file_is_read(address, said, server):
    status, body, _ = post(server.url, CHAT, url(address))
    assert (status, body["error"]["code"]) == (400, "invalid_media")
    assert said in body["error"]["message"]
    assert "data:" in body["error"]["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/v1/nothing", 404), ("POST", "/v1/models", 405)])
def test_other_routes_are_refused_in_the_same_form(method, path, status, server):
    got, body, _ = post(server.url, path, b"{}")
    assert got == status
    assert set(body["error"]) == {"message", "type", "param", "code"}


def test_other_content_types_are_refused(server):
    status, body, _ = post(server.url, CHAT, GOOD, **{"Content-Type": "text/plain"})
    assert (status, body["error"]["code"]) == (400, "content_type")


def test_a_body_becomes_an_order():
    body = {**GOOD, "stop": "x", "n": 2, "stream": True, "stream_options": {"include_usage": True}, "deadline_s": 3}
    order = read_chat(json.dumps(body).encode(), ("nano",), ServingConfig())
    assert (order.num, order.stream, order.include_usage, order.deadline_s) == (2, True, True, 3)
    assert (order.sampling.max_new_tokens, order.sampling.stop, order.sampling.temperature) == (2, ("x",), 0.0)
    several = read_completion(b'{"prompt": [[1, 2], [3]]}', ("nano",), ServingConfig())
    assert several.prompts == ([1, 2], [3])
    assert read_completion(b'{"prompt": [1, 2]}', ("nano",), ServingConfig()).prompts == ([1, 2],)


def test_an_answer_without_words_may_stand_between_questions():
    silent = [*HELLO, {"role": "assistant", "content": None, "refusal": None, "tool_calls": []}, *HELLO]
    order = read_chat(json.dumps({"messages": silent}).encode(), ("nano",), ServingConfig())
    (conversation,) = order.prompts
    assert isinstance(conversation, Conversation)
    assert [turn.text for turn in conversation.turns] == ["Hello", "", "Hello"]


@pytest.mark.parametrize(
    ("wrong", "param", "said"),
    [
        ({"stop": 5}, "stop", "valid string; or"),
        ({"stop": ""}, "stop", "'stop': String should have at least 1 character."),
        ({"n": True}, "n", "valid integer"),
        ({"messages": ["a"]}, "messages.0", "valid dictionary"),
        ({"stream_options": {"a": 1}}, "stream_options.a", "Unknown field"),
        ({"a-b": 1}, "a-b", "Unknown field 'a-b'"),
    ],
)
def test_the_field_that_is_wrong_is_named(wrong, param, said):
    with pytest.raises(Refused, match=said) as raised:
        read_chat(json.dumps({**GOOD, **wrong}).encode(), ("nano",), ServingConfig())
    assert (raised.value.status, raised.value.param) == (400, param)


@pytest.mark.parametrize(
    ("kind", "field", "item"),
    [
        (ChatBody, "messages", 1),
        (ResponseBody, "input", 1),
        (TokenizeBody, "messages", 1),
        (CompletionBody, "prompt", {}),
    ],
)
def test_of_what_may_be_many_one_mistake_is_told(kind, field, item):
    with pytest.raises(ValidationError) as raised:
        kind.model_validate({field: [item] * 50})
    assert raised.value.error_count() <= 4  # one for each type that a field may have


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"messages": [], "metadata": [[]] * 600_000}, 413, "more than 500,000 values"),
        ({"messages": [{}], **{f"field{n}": 1 for n in range(1001)}}, 400, "has 1,001 mistakes"),
    ],
    ids=["values", "mistakes"],
)
def test_a_body_that_would_take_gigabytes_to_explain_is_refused(body, status, said):
    """Fifteen million empty lists in the place of messages, 45 MB, once took a server sixteen gigabytes."""
    with pytest.raises(Refused, match=said) as raised:
        read(ChatBody, json.dumps(body).encode(), ["nano"])
    assert raised.value.status == status


@pytest.mark.parametrize("route", ["/v1/completions", "/tokenize"])
def test_a_text_that_cannot_but_be_too_long_is_refused(server, route):
    status, answer, _ = post(server.url, route, {"prompt": "x" * 70_000})
    assert status == 400 and "70,000 characters are too long" in answer["error"]["message"]


def test_pictures_are_told_apart_from_what_is_too_large(server):
    bomb = Image.new("1", (12_000, 12_000))
    status, body, _ = post(server.url, CHAT, {"messages": shown(bomb)})
    assert status == 400
    assert "pixels; at most" in body["error"]["message"]
