"""Tools in prompts: by templates that know them and by those that do not; nothing in them is a control token."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.errors import MessageError
from cascadevl.core.messages import Conversation
from cascadevl.preprocessing.processor import Processor
from cascadevl.preprocessing.template import render
from cascadevl.preprocessing.tool_turns import disarmed, knows_tools

PARTS = tiny_parts("qwen3")
NAMED = replace(PARTS.spec, system="Be brief.")
LOOK: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}},
}
CALLS = [
    {"id": f"call_{at}", "type": "function", "function": {"name": "look", "arguments": f'{{"at": "{at}"}}'}}
    for at in ("a", "b")
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "What is there?"},
    {"role": "assistant", "content": "Let me see.", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "call_a", "content": "A cat."},
    {"role": "tool", "tool_call_id": "call_b", "content": [{"type": "text", "text": "A dog."}]},
]
PLAIN = """\
<|im_start|>system
Be brief.

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
<|im_start|>user
What is there?<|im_end|>
<|im_start|>assistant
Let me see.
<tool_call>
{"name": "look", "arguments": {"at": "a"}}
</tool_call>
<tool_call>
{"name": "look", "arguments": {"at": "b"}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
A cat.
</tool_response>
<tool_response>
A dog.
</tool_response><|im_end|>
<|im_start|>assistant
"""
"""What the templates of Qwen2.5 render of the same."""

IGNORANT = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
KNOWING = (
    "{%- for tool in tools or [] -%}[{{ tool | tojson }}]{%- endfor -%}"
    "{%- for message in messages -%}"
    "{{ message.role }}:{{ message.content }}{{ message.tool_call_id }}"
    "{%- for call in message.tool_calls or [] -%}({{ call.id }} {{ call.function.name }}"
    "{%- for key, value in call.function.arguments.items() %} {{ key }}={{ value }}{% endfor -%}){%- endfor -%};"
    "{%- endfor -%}"
)


def rendered(spec: Any, messages: Any = MESSAGES, tools: tuple[Any, ...] = (LOOK,)) -> str:
    return "".join(span.text for span in render(Conversation.parse(messages).with_tools(tools), spec))


def test_a_template_that_knows_no_tools_has_the_words_of_qwen() -> None:
    assert rendered(NAMED) == PLAIN


def test_so_has_a_jinja_that_knows_none() -> None:
    assert not knows_tools(IGNORANT)
    assert rendered(replace(NAMED, template="jinja", jinja=IGNORANT)) == PLAIN


def test_without_a_system_message_the_persona_stands_before_the_tools() -> None:
    spec = replace(NAMED, system=None)
    assert rendered(spec).split("\n\n# Tools")[0] == rendered(spec, tools=()).split("<|im_end|>")[0]


def test_a_system_message_of_the_conversation_replaces_that_of_the_spec() -> None:
    told = rendered(NAMED, [{"role": "system", "content": "Be long."}, *MESSAGES])
    assert told == PLAIN.replace("Be brief.", "Be long.")


def test_a_jinja_that_knows_tools_is_told_them_beside_the_messages() -> None:
    assert knows_tools(KNOWING)
    spec = replace(NAMED, template="jinja", jinja=KNOWING, system=None)
    assert rendered(spec) == (
        f"[{json.dumps(LOOK)}]"
        "user:What is there?;assistant:Let me see.(call_a look at=a)(call_b look at=b);"
        "tool:A cat.call_a;tool:A dog.call_b;"
    )
    assert rendered(spec, MESSAGES[:1], ()) == "user:What is there?;"


def test_answers_with_calls_are_trained_on() -> None:
    spans = render(Conversation.parse(MESSAGES), NAMED)
    trained = "".join(span.text for span in spans if span.trained)
    assert trained == PLAIN.split("assistant\n")[1].split("\n<|im_start|>")[0]


CONTROLS = st.sampled_from([*PARTS.tokenizer.controls, "<|im_", "end|>", "a", '"', "\\"])
SAID = st.lists(CONTROLS, max_size=4).map("".join)


@given(SAID, SAID, SAID, SAID, st.sampled_from([None, IGNORANT, KNOWING]))
def test_no_control_token_comes_out_of_a_tool(name: str, told: str, argument: str, result: str, jinja: Any) -> None:
    """Nor out of a call or a result: the prompt has those of its template alone."""
    spec = replace(NAMED, template="jinja" if jinja else NAMED.template, jinja=jinja)
    processor = Processor(spec, PARTS.tokenizer)

    def controls(*texts: str) -> list[int]:
        name, told, argument, result = texts
        call = {"name": name, "arguments": {argument: [argument]}}
        messages = [
            MESSAGES[0],
            {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "function": call}]},
            {"role": "tool", "tool_call_id": "x", "content": result},
        ]
        tool = {"type": "function", "function": {"name": name, "parameters": {told: told}}}
        token_ids = processor(Conversation.parse(messages).with_tools([tool])).token_ids.tolist()
        return [i for i in token_ids if i in PARTS.tokenizer.controls.values()]

    assert controls(name, told, argument, result) == controls("a", "b", "c", "d")


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: Any = {}
    for _ in range(3000):
        deep = {"items": deep}
    with pytest.raises(MessageError, match="nested too deeply"):
        disarmed(deep, str)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"role": "tool", "tool_call_id": "y", "content": "a"}, "Message 2 answers the tool call 'y'"),
        ({"role": "tool", "content": "a"}, "Message 2: the result of a tool"),
        ({"role": "tool", "tool_call_id": "call_a", "content": [{"type": "image", "image": "a.png"}]}, "is a text"),
        ({"role": "user", "content": "a", "tool_calls": CALLS}, "unknown field 'tool_calls'"),
        ({"role": "assistant", "content": "a", "tool_calls": "b"}, "Message 2: 'tool_calls' must be a list"),
        ({"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}, "Message 2: 'tool_calls' must be a list"),
        ({"role": "assistant", "content": None}, "got NoneType"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(MessageError, match=message):
        Conversation.parse([*MESSAGES[:2], wrong])


def test_tools_are_parts_of_the_system_turn_and_found_there() -> None:
    assert Conversation.parse(MESSAGES).tools == []
    assert Conversation.parse(MESSAGES).with_tools([LOOK]).tools == [LOOK]
    assert Conversation.parse(MESSAGES).with_tools([]) == Conversation.parse(MESSAGES)
