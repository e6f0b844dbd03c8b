"""The official client, sync and async, tours every feature of a real server with nano, the model that everyone has."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from PIL import Image, ImageDraw
from pydantic import BaseModel

import cascadevl
from cascadevl.engine.config import EngineConfig
from cascadevl.serving.app import Service
from cascadevl.serving.config import ServingConfig
from tests.serving.conftest import PATIENCE_S, Running, eventually, running, url_of

KEY = "secret"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]
FORCED: Any = {"type": "function", "function": {"name": "weather"}}
RESPONSE_TOOLS: list[Any] = [{"type": "function", "strict": True, **TOOLS[0]["function"]}]


class Receipt(BaseModel):
    paid: bool
    lines: int


SCHEMA = {
    "type": "object",
    "properties": {"paid": {"type": "boolean"}, "lines": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["paid", "lines"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def nano() -> Iterator[Running]:
    config = ServingConfig(port=0, max_requests=4, max_body_bytes=500_000)
    with running(Service(cascadevl.load("nano"), config, EngineConfig(cache_bytes=50_000_000)), KEY) as served:
        yield served
        eventually(lambda: not served.service.engine.busy and not len(served.service.admission))


@pytest.fixture
def chat(nano: Running) -> Any:
    def create(**wishes: Any) -> Any:
        asked: dict[str, Any] = {"model": "nano", "messages": HELLO, "max_tokens": 8, **wishes}
        return nano.client.chat.completions.create(**asked)

    return create


@pytest.fixture
def respond(nano: Running) -> Any:
    def create(**wishes: Any) -> Any:
        asked: dict[str, Any] = {"model": "nano", "input": "Hello", "max_output_tokens": 8, **wishes}
        return nano.client.responses.create(**asked)

    return create


def line(text: str = "Total 12.50") -> Image.Image:
    picture = Image.new("RGB", (448, 112), "white")
    ImageDraw.Draw(picture).text((20, 30), text, fill="black", font_size=40)
    return picture


def shown(**fields: Any) -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": url_of(line()), **fields}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "Read the text."}]}]


# Chat


def test_chat_usage_and_models(nano: Running, chat: Any) -> None:
    (model,) = nano.client.models.list().data
    assert (model.id, nano.client.models.retrieve("nano").spec_hash) == ("nano", nano.service.parts.spec.hash)  # type: ignore[attr-defined]
    answer = chat()
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == 0
    assert answer.spec_hash == nano.service.parts.spec.hash
    assert chat().usage.prompt_tokens_details.cached_tokens > 0


def test_a_stream_says_the_same_as_the_whole(nano: Running, chat: Any) -> None:
    whole = chat(max_tokens=16, extra_body={"min_tokens": 16})
    chunks = list(
        chat(max_tokens=16, stream=True, stream_options={"include_usage": True}, extra_body={"min_tokens": 16})
    )
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 16
    assert {chunk.spec_hash for chunk in chunks} == {nano.service.parts.spec.hash}
    with nano.client.chat.completions.stream(model="nano", messages=HELLO, max_tokens=16) as stream:
        assert (
            stream.get_final_completion().choices[0].message.content == chat(max_tokens=16).choices[0].message.content
        )


def test_n_seeds_and_stop(chat: Any) -> None:
    drawn = {"temperature": 1.5, "extra_body": {"top_k": 50, "min_p": 0.001, "min_tokens": 8}}
    first, again = chat(n=3, seed=4, **drawn), chat(n=3, seed=4, **drawn)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    assert texts[1] == chat(seed=5, **drawn).choices[0].message.content
    letter = texts[0][2]
    cut = chat(seed=4, stop=letter, **drawn).choices[0]
    assert (cut.message.content, cut.finish_reason) == (texts[0].partition(letter)[0], "stop")
    assert chat(seed=4, stop=[letter, "none of it"], **drawn).choices[0].message.content == cut.message.content


def test_logprobs_bias_and_penalties(chat: Any) -> None:
    (entry, *_) = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
    assert entry.logprob == entry.top_logprobs[0].logprob
    letter = str(ord("q") - ord("!"))  # bytes come first in nano's vocabulary, the visible ones from "!" on
    biased = chat(logit_bias={letter: 100}, extra_body={"ignore_eos": True}).choices[0]
    assert (biased.message.content, biased.finish_reason) == ("q" * 8, "length")
    varied = chat(logit_bias={letter: 5}, frequency_penalty=2.0, presence_penalty=2.0, extra_body={"ignore_eos": True})
    assert varied.choices[0].message.content.count("q") < 8
    repeated = chat(max_tokens=40, extra_body={"ignore_eos": True, "repetition_penalty": 1.5, "loop_guard": False})
    assert repeated.usage.completion_tokens == 40


def test_an_answer_fits_its_schema(nano: Running, chat: Any) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "receipt", "schema": SCHEMA, "strict": True}}
    Receipt.model_validate_json(chat(max_tokens=150, response_format=format).choices[0].message.content)
    assert chat(response_format={"type": "json_object"}).choices[0].message.content.startswith("{")
    parsed = nano.client.chat.completions.parse(model="nano", messages=HELLO, max_tokens=200, response_format=Receipt)
    assert isinstance(parsed.choices[0].message.parsed, Receipt)


# Tools


def is_weather(arguments: str) -> bool:
    told = json.loads(arguments)
    return set(told) == {"city", "days"} and told["city"] in ("Paris", "Rome") and 1 <= told["days"] <= 9


def test_a_forced_call_and_its_result(chat: Any) -> None:
    answer = chat(messages=HELLO, tools=TOOLS, tool_choice=FORCED, max_tokens=150)
    choice = answer.choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content, call.type, call.function.name) == (None, "function", "weather")
    assert is_weather(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    after = chat(messages=[*HELLO, choice.message, result], tools=TOOLS)
    assert after.choices[0].message.role == "assistant"
    assert after.usage.prompt_tokens > answer.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="which no message before it makes"):
        chat(messages=[*HELLO, result], tools=TOOLS)


def test_required_calls_come_in_a_stream(nano: Running, chat: Any) -> None:
    wishes: dict[str, Any] = {"tools": TOOLS[:1], "tool_choice": "required", "parallel_tool_calls": False}
    wishes["max_tokens"] = 150
    deltas = [chunk.choices[0] for chunk in chat(stream=True, **wishes)]
    calls = [call for choice in deltas for call in choice.delta.tool_calls or ()]
    assert calls[0].id
    assert calls[0].function.name == "weather"
    assert is_weather("".join(call.function.arguments for call in calls))
    assert deltas[-1].finish_reason == "tool_calls"
    with nano.client.chat.completions.stream(model="nano", messages=HELLO, **wishes) as stream:
        message = stream.get_final_completion().choices[0].message
    assert is_weather(message.tool_calls[0].function.arguments)  # type: ignore[index, union-attr]


def test_a_model_that_need_not_call_answers(chat: Any) -> None:
    free = chat(tools=TOOLS, tool_choice="auto", parallel_tool_calls=False, extra_body={"min_tokens": 4})
    assert free.choices[0].message.content and not free.choices[0].message.tool_calls
    without = chat(tools=TOOLS, tool_choice="none")
    assert without.usage.prompt_tokens == chat().usage.prompt_tokens < free.usage.prompt_tokens


# Pictures and videos


def test_pictures_with_detail_and_tiles(chat: Any) -> None:
    def tiles(messages: Any, **more: Any) -> int:
        usage = chat(messages=messages, max_tokens=1, **more).usage
        assert usage.prompt_tokens_details.visual_tokens > 0
        return usage.prompt_tokens_details.tiles

    answer = chat(messages=shown(), max_tokens=24)
    assert answer.choices[0].message.content
    assert tiles(shown(), extra_body={"max_tiles": 1}) == 1
    assert tiles(shown(detail="low")) <= tiles(shown(detail="high"))
    assert tiles(shown(detail="auto")) == tiles(shown())


def test_boxes_are_in_pixels_of_the_picture(chat: Any) -> None:
    schema = {"enum": ["<ref>a</ref><box>[[0, 500, 1000, 1000]]</box>"]}
    format = {"type": "json_schema", "json_schema": {"name": "box", "schema": schema}}
    choice = chat(messages=shown(), max_tokens=80, response_format=format).choices[0]
    assert choice.boxes == [{"label": "a", "box": [0.0, 56.0, 448.0, 112.0]}]


def test_a_video(chat: Any) -> None:
    file = io.BytesIO()
    line("1").save(file, "GIF", save_all=True, append_images=[line("2"), line("3")], duration=400)
    url = "data:image/gif;base64," + base64.b64encode(file.getvalue()).decode()
    video = {"type": "video_url", "video_url": {"url": url}, "num_frames": 2}
    messages = [{"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]}]
    assert chat(messages=messages).usage.prompt_tokens_details.tiles == 2


# Responses


def test_a_response(nano: Running, respond: Any, chat: Any) -> None:
    answer = respond(instructions="Be brief.", max_output_tokens=16)
    system = [{"role": "system", "content": "Be brief."}]
    assert answer.output_text == chat(messages=[*system, *HELLO], max_tokens=16).choices[0].message.content
    assert answer.usage.input_tokens_details.cached_tokens >= 0
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert (answer.instructions, answer.spec_hash) == ("Be brief.", nano.service.parts.spec.hash)
    cut = respond(max_output_tokens=1, extra_body={"ignore_eos": True})
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    more = respond(input=[*HELLO, *answer.output, {"role": "user", "content": "And now?"}], store=False)
    assert more.output[0].type == "message"


def test_a_response_in_events(nano: Running, respond: Any) -> None:
    events = list(respond(stream=True))
    assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
    assert events[-1].type in ("response.completed", "response.incomplete")
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == events[-1].response.output_text == respond().output_text
    text: Any = {"format": {"type": "json_schema", "name": "receipt", "schema": SCHEMA}}
    with nano.client.responses.stream(model="nano", input="Hello", max_output_tokens=150, text=text) as stream:
        Receipt.model_validate_json(stream.get_final_response().output_text)
    parsed = nano.client.responses.parse(model="nano", input="Hello", max_output_tokens=200, text_format=Receipt)
    assert isinstance(parsed.output_parsed, Receipt)


def test_a_response_about_a_picture_with_logprobs(respond: Any, chat: Any) -> None:
    content = [
        {"type": "input_image", "image_url": url_of(line()), "detail": "low"},
        {"type": "input_text", "text": "Read the text."},
    ]
    include: Any = ["message.output_text.logprobs"]
    answer = respond(input=[{"role": "user", "content": content}], include=include, top_logprobs=2, stream=False)
    expected = chat(messages=shown(detail="low"), logprobs=True, top_logprobs=2)
    assert answer.output_text == expected.choices[0].message.content
    assert answer.usage.input_tokens_details.visual_tokens > 0
    logprobs, others = answer.output[0].content[0].logprobs, expected.choices[0].logprobs.content
    assert [entry.token for entry in logprobs] == [entry.token for entry in others]
    assert [entry.logprob for entry in logprobs] == pytest.approx([entry.logprob for entry in others], abs=1e-4)


def test_a_response_with_a_call_and_its_result(nano: Running, respond: Any) -> None:
    choice: Any = {"type": "function", "name": "weather"}
    answer = respond(tools=RESPONSE_TOOLS, tool_choice=choice, max_output_tokens=150)
    (call,) = answer.output
    assert (call.type, call.name, call.status, answer.status) == ("function_call", "weather", "completed", "completed")
    assert is_weather(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    assert respond(input=[*HELLO, call, result], tools=RESPONSE_TOOLS).output[0].type == "message"
    with nano.client.responses.stream(
        model="nano", input="Hello", tools=RESPONSE_TOOLS, tool_choice=choice, max_output_tokens=150
    ) as stream:
        kinds = [event.type for event in stream]
        (streamed,) = stream.get_final_response().output
    assert is_weather(streamed.arguments)  # type: ignore[union-attr]
    assert "response.function_call_arguments.delta" in kinds
    assert "response.function_call_arguments.done" in kinds


# Completions


def test_completions(nano: Running) -> None:
    def complete(**wishes: Any) -> Any:
        asked: dict[str, Any] = {"model": "nano", "prompt": "One two", "max_tokens": 6, **wishes}
        return nano.client.completions.create(**asked)

    whole = complete(logprobs=2, extra_body={"ignore_eos": True})
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens == 6
    streamed = complete(stream=True, extra_body={"ignore_eos": True})
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text
    assert len(complete(prompt=["One", "Two"], n=2, temperature=1.0, seed=1).choices) == 4
    for wishes in ({"echo": True}, {"suffix": "end"}, {"best_of": 3}):
        with pytest.raises(openai.BadRequestError, match="not supported") as raised:
            complete(**wishes)
        assert raised.value.param == next(iter(wishes))


# What is refused


def test_errors_have_their_classes_and_codes(nano: Running, chat: Any, respond: Any) -> None:
    stranger = nano.client.with_options(api_key="wrong")
    for call in (stranger.models.list, lambda: stranger.responses.create(model="nano", input="a")):
        with pytest.raises(openai.AuthenticationError):
            call()
    for create in (chat, respond):
        with pytest.raises(openai.NotFoundError) as missing:
            create(model="gpt-9")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="Did you mean 'temperature'") as unknown:
            create(extra_body={"temprature": 1})
        assert unknown.value.code == "unknown_field"
        with pytest.raises(openai.BadRequestError, match="Nothing is stored"):
            create(store=True)
        assert create(user="me", metadata={"a": "b"}, service_tier="auto", store=False)
    with pytest.raises(openai.BadRequestError, match="Nothing is stored"):
        respond(previous_response_id="resp_1")
    with pytest.raises(openai.APIStatusError) as large:
        chat(messages=[{"role": "user", "content": "a" * 600_000}])
    assert large.value.status_code == 413


def test_a_full_server_says_when_to_come_again(nano: Running, chat: Any) -> None:
    streams = [chat(stream=True, max_tokens=1500, extra_body={"ignore_eos": True}) for _ in range(4)]
    with pytest.raises(openai.RateLimitError) as full:
        chat()
    assert int(full.value.response.headers["retry-after"]) >= 1
    for stream in streams:
        stream.close()
    eventually(lambda: not len(nano.service.admission))
    assert chat().choices


def test_an_error_in_a_stream_of_responses_is_raised(nano: Running, respond: Any) -> None:
    """The status is sent by then: the words come as an event."""
    wishes = {"stream": True, "max_output_tokens": 1500, "extra_body": {"ignore_eos": True, "deadline_s": 0.3}}
    with pytest.raises(openai.APIError, match="deadline") as raised:
        for _ in respond(**wishes):
            pass
    assert raised.value.code == "deadline_exceeded"


# The same from an event loop


def test_the_async_client_does_all_this_at_once(nano: Running, chat: Any, respond: Any) -> None:
    async def tour() -> tuple[Any, ...]:
        async with openai.AsyncOpenAI(
            base_url=f"{nano.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_S
        ) as client:
            return await asyncio.gather(streamed(client), called(client), responded(client), pictured(client))

    async def streamed(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model="nano", messages=HELLO, max_tokens=8, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def called(client: openai.AsyncOpenAI) -> Any:
        return await client.chat.completions.create(
            model="nano", messages=HELLO, max_tokens=150, tools=TOOLS, tool_choice=FORCED
        )

    async def responded(client: openai.AsyncOpenAI) -> str:
        async with client.responses.stream(model="nano", input="Hello", max_output_tokens=8) as stream:
            return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])

    async def pictured(client: openai.AsyncOpenAI) -> Any:
        return await client.chat.completions.create(
            model="nano", messages=shown(), max_tokens=8, extra_body={"max_tiles": 1}
        )

    said, call, response, picture = asyncio.run(tour())
    assert said == chat().choices[0].message.content
    assert is_weather(call.choices[0].message.tool_calls[0].function.arguments)
    assert response == respond().output_text
    assert picture.usage.prompt_tokens_details.tiles == 1
