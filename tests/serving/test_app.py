"""A stock client's tour of every feature, against the engine's own answers."""

import base64
import io
import json
import math
from typing import Any

import openai
import pytest
from PIL import Image

from cascadevl.api import Bundle
from cascadevl.core.generation import Constraint, Sampling
from cascadevl.core.messages import Conversation, Text, Turn, Video
from tests.serving.conftest import eventually, shown

HELLO = [{"role": "user", "content": "Hello"}]


def own(parts, messages, *, max_tiles=None, **sampling):
    """The answer without a server."""
    return Bundle(parts).generate(messages, Sampling(**sampling), max_tiles=max_tiles)


def opened(picture, text="What is it?"):
    return Conversation.ask(text, [picture])


def test_an_answer_is_that_of_the_model(server, parts):
    answer = server.client.chat.completions.create(model=parts.name, messages=HELLO, max_tokens=12)
    expected = own(parts, HELLO, max_new_tokens=12)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.completion_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.spec_hash == parts.spec.hash


def test_pictures_are_seen_as_without_a_server(server, parts, picture):
    answer = server.client.chat.completions.create(model=parts.name, messages=shown(picture), max_completion_tokens=8)
    expected = own(parts, opened(picture), max_new_tokens=8)
    assert answer.choices[0].message.content == expected.text
    details = answer.usage.prompt_tokens_details
    assert details.visual_tokens == expected.usage.visual_tokens > 0
    assert details.tiles == expected.usage.tiles > 0


def test_several_pictures_of_several_formats_and_a_system_prompt(server, parts, picture):
    other = Image.new("RGB", (50, 120), "red")
    system = [{"role": "system", "content": "Be brief."}]
    answer = server.client.chat.completions.create(
        model=parts.name, messages=system + shown(picture, other), max_tokens=8
    )
    expected = own(parts, Conversation.ask("What is it?", [picture, other], system="Be brief."), max_new_tokens=8)
    assert answer.choices[0].message.content == expected.text
    developer = [{"role": "developer", "content": "Be brief."}]
    again = server.client.chat.completions.create(
        model=parts.name, messages=developer + shown(picture, other), max_tokens=8
    )
    assert again.choices[0].message.content == expected.text
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_videos_are_seen_as_without_a_server(server, parts):
    frames = [Image.new("RGB", (64, 48), color) for color in ("red", "green", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=500)
    url = "data:image/gif;base64," + base64.b64encode(file.getvalue()).decode()
    content: Any = [
        {"type": "video_url", "video_url": {"url": url}, "num_frames": 2}, {"type": "text", "text": "What happens?"}
    ]  # fmt: skip
    answer = server.client.chat.completions.create(
        model=parts.name, messages=[{"role": "user", "content": content}], max_tokens=8
    )
    turn = Turn("user", (Video(file.getvalue(), num_frames=2), Text("What happens?")))
    expected = own(parts, Conversation((turn,)), max_new_tokens=8)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens_details.tiles == expected.usage.tiles == 2


def test_detail_and_max_tiles_bound_the_tiles(server, parts):
    wide = Image.linear_gradient("L").resize((900, 100)).convert("RGB")

    def tiles(messages, **more):
        answer = server.client.chat.completions.create(
            model=parts.name, messages=messages, max_tokens=1, extra_body=more
        )
        return answer.usage.prompt_tokens_details.tiles

    few, many = tiles(shown(wide), max_tiles=1), tiles(shown(wide))
    assert few == 1 < many
    assert tiles(shown(wide), max_tiles=2) == own(parts, opened(wide), max_tiles=2, max_new_tokens=1).usage.tiles
    assert tiles(shown(wide, detail="high")) >= many
    messages = shown(wide)
    messages[0]["content"][0]["max_tiles"] = 1
    assert tiles(messages) == 1


def test_a_stream_brings_the_same_answer_in_pieces(server, parts, picture):
    stream = server.client.chat.completions.create(
        model=parts.name, messages=shown(picture), max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    expected = own(parts, opened(picture), max_new_tokens=16)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == expected.usage.completion_tokens
    assert {c.id for c in chunks} == {chunks[0].id}
    assert {c.spec_hash for c in chunks} == {parts.spec.hash}


def test_a_stream_has_no_usage_unless_it_is_asked_for(server, parts):
    stream = server.client.chat.completions.create(model=parts.name, messages=HELLO, max_tokens=4, stream=True)
    chunks = list(stream)
    assert all(chunk.choices for chunk in chunks)
    assert not any("usage" in chunk.model_dump(exclude_unset=True) for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_n_answers_are_those_of_seeds_in_a_row(server, parts, stream):
    wishes = {"model": parts.name, "messages": HELLO, "max_tokens": 8}
    drawn = server.client.chat.completions.create(**wishes, n=3, seed=7, temperature=1.5, stream=stream)
    texts = ["", "", ""]
    if stream:
        for chunk in drawn:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        assert [choice.index for choice in drawn.choices] == [0, 1, 2]
        texts = [choice.message.content for choice in drawn.choices]
        assert drawn.usage.prompt_tokens == own(parts, HELLO, max_new_tokens=1).usage.prompt_tokens
    expected = [own(parts, HELLO, max_new_tokens=8, seed=seed, temperature=1.5).text for seed in (7, 8, 9)]
    assert texts == expected
    assert len(set(texts)) > 1


def test_sampling_fields_arrive(server, parts):
    fields = {"temperature": 1.3, "top_p": 0.9, "seed": 3}
    ours = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2, "loop_guard": False}
    answer = server.client.chat.completions.create(
        model=parts.name, messages=HELLO, max_tokens=16, **fields, extra_body=ours
    )
    assert answer.choices[0].message.content == own(parts, HELLO, max_new_tokens=16, **fields, **ours).text


def test_a_stop_text_ends_the_answer(server, parts):
    whole = own(parts, HELLO, max_new_tokens=16, loop_guard=False).text
    stop = whole[len(whole) // 2]
    answer = server.client.chat.completions.create(
        model=parts.name, messages=HELLO, max_tokens=16, stop=[stop], extra_body={"loop_guard": False}
    )
    assert answer.choices[0].message.content == whole.partition(stop)[0]
    assert answer.choices[0].finish_reason == "stop"


def test_a_loop_is_cut_short_and_says_so(server, parts):
    assert own(parts, HELLO, max_new_tokens=400).finish_reason == "repetition", "ask what this model repeats"
    answer = server.client.chat.completions.create(model=parts.name, messages=HELLO, max_tokens=400)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].stop_reason == "repetition"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_model(server, parts, stream):
    answer = server.client.chat.completions.create(
        model=parts.name, messages=HELLO, max_tokens=6, logprobs=True, top_logprobs=3, stream=stream
    )
    choices = [c.choices[0] for c in answer] if stream else answer.choices
    content = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    expected = own(parts, HELLO, max_new_tokens=6, logprobs=3).logprobs or ()
    assert [entry.logprob for entry in content] == pytest.approx([entry.logprob for entry in expected], abs=1e-4)
    assert all(len(entry.top_logprobs) == 3 for entry in content)
    assert all(bytes(entry.bytes).decode(errors="replace") == entry.token for entry in content)


def test_an_answer_fits_the_schema_asked_for(server, parts):
    schema = {
        "type": "object",
        "properties": {"total": {"type": "integer", "minimum": 0, "maximum": 99}, "paid": {"type": "boolean"}},
        "required": ["total", "paid"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "json_schema": {"name": "receipt", "schema": schema, "strict": True}}
    answer = server.client.chat.completions.create(
        model=parts.name, messages=HELLO, max_tokens=200, response_format=format
    )
    said = json.loads(answer.choices[0].message.content)
    assert set(said) == {"total", "paid"}
    assert 0 <= said["total"] <= 99
    constraint = Constraint("json_schema", schema)
    expected = own(parts, HELLO, max_new_tokens=200, constraint=constraint).text
    assert answer.choices[0].message.content == expected


def test_any_json_object_can_be_asked_for(server, parts):
    answer = server.client.chat.completions.create(
        model=parts.name, messages=HELLO, max_tokens=40, response_format={"type": "json_object"}
    )
    assert answer.choices[0].message.content.startswith("{")


def test_an_impossible_schema_is_the_clients_mistake(server, parts):
    format = {"type": "json_schema", "json_schema": {"name": "no", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="constraint"):
        server.client.chat.completions.create(model=parts.name, messages=HELLO, response_format=format)


def test_boxes_come_in_pixels_of_the_last_picture(server, parts, picture):
    said = "<ref>cat</ref><box>[[100, 200, 500, 1000]]</box>"
    schema = {"enum": [said]}
    format = {"type": "json_schema", "json_schema": {"name": "box", "schema": schema}}
    other = Image.new("RGB", (50, 120), "red")
    for stream in (False, True):
        answer = server.client.chat.completions.create(
            model=parts.name, messages=shown(other, picture), max_tokens=200, response_format=format, stream=stream
        )
        choice = list(answer)[-1].choices[0] if stream else answer.choices[0]
        assert choice.boxes == [{"label": "cat", "box": [20.0, 20.0, 100.0, 100.0]}]
        assert choice.malformed_boxes == []


def test_an_answer_can_be_sent_back_as_it_came(server, parts):
    first = server.client.chat.completions.create(model=parts.name, messages=HELLO, max_tokens=4)
    messages = [*HELLO, first.choices[0].message, {"role": "user", "content": "And now?"}]
    second = server.client.chat.completions.create(model=parts.name, messages=messages, max_tokens=4)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_completions_take_texts_and_tokens(server, parts):
    text = "One two three"
    answer = server.client.completions.create(model=parts.name, prompt=text, max_tokens=6)
    ids = parts.tokenizer.encode(text)
    by_ids = server.client.completions.create(model=parts.name, prompt=ids, max_tokens=6, logprobs=2)
    assert answer.object == "text_completion"
    assert by_ids.choices[0].text == answer.choices[0].text
    assert by_ids.usage.prompt_tokens == len(ids)
    assert len(by_ids.choices[0].logprobs.tokens) == by_ids.usage.completion_tokens
    assert all(logprob <= 0 and math.isfinite(logprob) for logprob in by_ids.choices[0].logprobs.token_logprobs)
    streamed = server.client.completions.create(model=parts.name, prompt=text, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text


def test_several_prompts_get_their_answers_in_order(server, parts):
    prompts = ["One", "Two", "Three"]
    together = server.client.completions.create(model=parts.name, prompt=prompts, max_tokens=6, n=2, seed=5)
    alone = [server.client.completions.create(model=parts.name, prompt=each, max_tokens=6) for each in prompts]
    assert [choice.index for choice in together.choices] == list(range(6))
    assert [together.choices[i].text for i in (0, 2, 4)] == [answer.choices[0].text for answer in alone]
    assert together.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone)


def test_tokens_of_pictures_cannot_be_sent_as_numbers(server, parts):
    context = parts.tokenizer.id(parts.spec.image_context)
    for prompt in ([context], [-1], [10**9], []):
        with pytest.raises(openai.BadRequestError):
            server.client.completions.create(model=parts.name, prompt=prompt, max_tokens=2)


def test_the_model_is_listed_and_others_are_not_there(server, parts):
    (model,) = server.client.models.list().data
    assert model.id == parts.name
    assert server.client.models.retrieve(parts.name).spec_hash == parts.spec.hash
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'"):
        server.client.models.retrieve("gpt-9")
    with pytest.raises(openai.NotFoundError) as raised:
        server.client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert raised.value.code == "model_not_found"
    assert raised.value.param == "model"


def test_tokens_are_counted_before_a_question_is_asked(server, parts, picture):
    counted = server.client.post("../tokenize", body={"messages": shown(picture), "max_tiles": 2}, cast_to=dict)
    inputs = parts.processor(opened(picture), max_tiles=2)
    assert counted["tokens"] == inputs.token_ids.tolist()
    assert (counted["count"], counted["visual_tokens"]) == (len(inputs.token_ids), inputs.num_visual_tokens)
    assert counted["tiles"] == len(inputs.tiles)
    text = server.client.post("../tokenize", body={"prompt": "Hello"}, cast_to=dict)
    assert text["tokens"] == parts.tokenizer.encode("Hello")


def test_control_tokens_in_a_text_stay_text(server, parts):
    sent = "<|im_end|><IMG_CONTEXT>"
    counted = server.client.post("../tokenize", body={"prompt": sent}, cast_to=dict)["tokens"]
    assert not set(counted) & set(parts.tokenizer.controls.values())
    messages = [{"role": "user", "content": sent}]
    chat = server.client.post("../tokenize", body={"messages": messages}, cast_to=dict)
    assert chat["visual_tokens"] == 0
    assert parts.tokenizer.id(parts.spec.image_context) not in chat["tokens"]


def test_metrics_tell_what_was_done(server, parts, picture):
    def value(name):
        text = server.client.get("../metrics", cast_to=str)
        (line,) = [line for line in text.splitlines() if line.rpartition(" ")[0] == name]
        return float(line.rpartition(" ")[2])

    api = '{api="/v1/chat/completions"}'
    names = (
        f"cascadevl_time_to_first_token_seconds_count{api}",
        f"cascadevl_time_per_output_token_seconds_count{api}",
        'cascadevl_http_responses_total{api="/v1/chat/completions",status="200"}',
        "cascadevl_tiles_total",
        "cascadevl_visual_tokens_total",
        "cascadevl_prompt_tokens_total",
        "cascadevl_cached_prompt_tokens_total",
    )
    wishes = {"model": parts.name, "messages": shown(picture), "max_tokens": 3}
    first = server.client.chat.completions.create(**wishes)
    before = [value(name) for name in names]
    second = server.client.chat.completions.create(**wishes)
    details = second.usage.prompt_tokens_details
    assert details.cached_tokens > 0
    grown = [1, 1, 1, details.tiles, details.visual_tokens, first.usage.prompt_tokens, details.cached_tokens]
    assert [value(name) for name in names] == [a + b for a, b in zip(before, grown, strict=True)]
    eventually(lambda: value("cascadevl_queue_requests") == 0)
    assert value("cascadevl_queue_tokens") == value("cascadevl_queue_bytes") == value("cascadevl_requests_running") == 0


def test_the_document_describes_the_bodies(server):
    document = server.client.get("../openapi.json", cast_to=dict)
    content = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    assert {"messages", "max_tiles", "response_format"} <= set(schema["properties"])
    for name in ("StreamOptions", "ResponseFormat"):
        at = document
        reference = next(ref for ref in _references(schema) if ref.endswith(name))
        for step in reference.removeprefix("#/").split("/"):
            at = at[step.replace("~1", "/")]
        assert at["type"] == "object"


def _references(value):
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _references(each)
