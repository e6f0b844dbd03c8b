"""Chat templates: how turns become one string, byte for byte, and which of it is trained on.

The named templates are data (released `conversation.py` of InternVL). A folder of the native
transformers layout brings a Jinja text of its own, which is rendered in a sandbox as it is.
"""

import functools
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from cascadevl.core.errors import CheckpointError, ConfigError, MessageError
from cascadevl.core.messages import Conversation, Image, Text, ToolCall, ToolResult, Tools, Turn, Video
from cascadevl.preprocessing.parse import THINK_END, THINK_START
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tool_turns import (
    called,
    disarmed,
    knows_tools,
    with_results_together,
    without_tools,
    worded,
)

PERSONA_2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
PERSONA_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)

PERSONA_GPT_OSS = (
    "You are InternVL, a large language model trained by Shanghai AI Laboratory.\nKnowledge cutoff: 2024-06\n"
    "Current date: 2025-08-06\n\nReasoning: low\n\n"
    "# Valid channels: final. Channel must be included for every message."
)

THINKING = (
    "You are an AI assistant that rigorously follows this response protocol:\n\n"
    "1. First, conduct a detailed analysis of the question. Consider different angles, potential solutions, "
    "and reason through the problem step-by-step. Enclose this entire thinking process within <think> and "
    "</think> tags.\n\n"
    "2. After the thinking section, provide a clear, concise, and direct answer to the user's question. "
    "Separate the answer from the think section with a newline.\n\n"
    "Ensure that the thinking process is thorough but remains focused on the query. The final answer should "
    "be standalone and not reference the thinking section."
)
"""System message that switches InternVL3.5 to thinking (model cards of 3.5); sample at temperature 0.6."""


class Span(NamedTuple):
    """A stretch of the prompt; `trained` where the model learns to say it."""

    text: str
    trained: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTemplate:
    """Header, message and end for every turn; what is particular to answers has a line of its own."""

    system: str
    user: str
    assistant: str
    turn_end: str
    persona: str
    """System message where the conversation has none; the system turn is always there."""
    opening: str | None = None
    """Header of an answer that is still to come; None: as of any."""
    answer_start: str = ""
    """What the model says in front of its answer."""
    answer_end: str | None = None
    """End of the last answer; None: `turn_end`."""
    past_answer_end: str | None = None
    """End of an answer with more turns behind it; None: `answer_end`."""
    thought_start: str = ""
    thought_end: str = ""
    """What the model says around its thinking, which messages hold as `<think>…</think>`; empty: as it is written."""

    @property
    def stop(self) -> str:
        """The token that ends an answer."""
        return (self.answer_end or "").strip() or self.turn_end.strip()

    def end(self, last: bool) -> str:
        """What follows an answer, the last one or an earlier one."""
        end = self.turn_end if self.answer_end is None else self.answer_end
        return end if last or self.past_answer_end is None else self.past_answer_end

    def said(self, answer: str) -> str:
        """An answer in the words of the model, as it is trained on (InternVL, internvl_chat_gpt_oss)."""
        if self.thought_start and THINK_START in answer and THINK_END in answer:
            thinking, answer = answer.rsplit(THINK_END, 1)
            thinking = thinking.split(THINK_START, 1)[-1]
            return self.thought_start + thinking.strip() + self.thought_end + self.answer_start + answer.strip()
        return self.answer_start + answer


def _chatml(turn_end: str, persona: str) -> ChatTemplate:
    start = "<|im_start|>"
    return ChatTemplate(
        system=f"{start}system\n",
        user=f"{start}user\n",
        assistant=f"{start}assistant\n",
        turn_end=turn_end,
        persona=persona,
    )


TEMPLATES: dict[str, ChatTemplate] = {
    "internvl2_5": _chatml("<|im_end|>\n", PERSONA_2_5),
    "Hermes-2": _chatml("<|im_end|>", PERSONA_2),
    "internlm2-chat": _chatml("<|im_end|>", PERSONA_2),
    "phi3-chat": ChatTemplate(
        system="<|system|>\n", user="<|user|>\n", assistant="<|assistant|>\n", turn_end="<|end|>", persona=PERSONA_2
    ),
    "internvl3_5_gpt_oss": ChatTemplate(
        system="<|start|>system<|message|>",
        user="<|start|>user<|message|>",
        assistant="<|start|>assistant",
        turn_end="<|end|>",
        persona=PERSONA_GPT_OSS,
        answer_start="<|channel|>final<|message|>",
        answer_end="<|return|>",
        past_answer_end="<|end|>",
        thought_start="<|channel|>analysis<|message|>",
        thought_end="<|end|><|start|>assistant",
    ),
    "internvl_zh": ChatTemplate(  # of InternVL-Chat-V1-1; its released rendering puts no stop token behind answers
        system="", user="<human>: ", assistant="<bot>: ", turn_end="</s>", persona="", opening="<bot>:", answer_end=" "
    ),
}


def find_template(name: str) -> ChatTemplate:
    if name not in TEMPLATES:
        raise CheckpointError(f"Unknown chat template {name!r}. Supported: {', '.join(TEMPLATES)}, jinja.")
    return TEMPLATES[name]


def answer_ends(spec: Spec, controls: Collection[str]) -> list[str]:
    """Control tokens that end an answer; a Jinja text does not say which, the tokenizer's own do."""
    if spec.jinja is None:
        known = [find_template(spec.template).stop]
    else:  # where <|return|> exists, <|end|> only closes the thinking
        known = ["<|return|>"] if "<|return|>" in controls else ["<|im_end|>", "<|end|>"]
    return [end for end in known if end in controls]


def render(conversation: Conversation, spec: Spec, say: Callable[[str], str] = str) -> list[Span]:
    """The prompt as spans, a picture being `spec.image_context` once.

    `say` is applied to every text that people wrote. Where the last turn is not the assistant's,
    the header of its answer follows.
    """
    if conversation.is_document:
        return [Span(_document_text(conversation.turns[0], spec, say), True)]
    conversation = _with_system(conversation, spec)
    return _render_jinja(conversation, spec, say) if spec.jinja else _render_named(conversation, spec, say)


def _document_text(turn: Turn, spec: Spec, say: Callable[[str], str]) -> str:
    """As it stands, all of it to be learned (`from: pretrain` in InternVL's `oss/train/dataset.py`)."""
    placeholders = {Image: spec.image_context, Video: spec.video}
    return "".join(placeholders.get(type(part)) or say(part.text) for part in merged(turn))


def _with_system(conversation: Conversation, spec: Spec) -> Conversation:
    first, turns = conversation.turns[0], conversation.turns
    if first.role == "system" and not all(isinstance(part, Tools) for part in first.parts):
        return conversation
    system = spec.system
    if system is None:
        if spec.template == "jinja":
            return conversation
        system = find_template(spec.template).persona
    tools, turns = (first.parts, turns[1:]) if first.role == "system" else ((), turns)
    return Conversation((Turn("system", (Text(system), *tools)), *turns))


def _render_named(conversation: Conversation, spec: Spec, say: Callable[[str], str]) -> list[Span]:
    template = find_template(spec.template)
    headers = {"system": template.system, "user": template.user, "tool": template.user}
    spans = []
    for turn in with_results_together(conversation).turns:
        body = _turn_text(turn, spec, say)
        if turn.role != "assistant":
            spans.append(Span(headers[turn.role] + body + template.turn_end, False))
            continue
        end = template.end(last=turn is conversation.turns[-1])
        # The token that stops is learned; a newline behind it, or what closes a past answer in its place, is not.
        learned = template.stop if end.startswith(template.stop) else ""
        spans += [Span(template.assistant, False), Span(template.said(body) + learned, True)]
        spans.append(Span(end.removeprefix(learned), False))
    if not conversation.ends_with_answer:
        spans.append(Span(template.assistant if template.opening is None else template.opening, False))
    return [span for span in spans if span.text]


def _turn_text(turn: Turn, spec: Spec, say: Callable[[str], str]) -> str:
    several = sum(isinstance(part, Image) for part in turn.parts) > 1
    text, number = "", 0
    for part in merged(turn):
        if isinstance(part, Text):
            text += worded(part, say, text)
        elif isinstance(part, Image):
            number += 1
            label = spec.image_label.replace("{n}", str(number)) if several else ""
            text += f"{label}{spec.image_context}{spec.image_separator}"
        else:
            text += f"{spec.video}{spec.image_separator}"
    return text


def merged(turn: Turn) -> list[Any]:
    """Parts with neighbouring texts joined: no control token can hide across a seam."""
    parts: list[Any] = []
    for part in turn.parts:
        if parts and type(part) is Text and type(parts[-1]) is Text:
            parts[-1] = Text(parts[-1].text + part.text)
        else:
            parts.append(part)
    return parts


def _render_jinja(conversation: Conversation, spec: Spec, say: Callable[[str], str]) -> list[Span]:
    """Turn by turn: what rendering an answer adds behind its header is what is trained on."""
    assert spec.jinja is not None
    if knows_tools(spec.jinja):
        turns, message = without_tools(conversation), _jinja_message
        tools = disarmed(conversation.tools, say) or None
    else:
        turns, message, tools = with_results_together(conversation).turns, _jinja_plain_message, None
    messages = [message(turn, say) for turn in turns]
    apply = functools.partial(_apply, spec, tools)
    spans: list[Span] = []
    done = ""
    for i, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        try:
            header = apply(messages[:i], add_generation_prompt=True)
            answered = apply(messages[: i + 1], add_generation_prompt=False)
        except MessageError:  # some templates refuse the beginning of what they take as a whole
            header, answered = "", None
        if answered is None or not (header.startswith(done) and answered.startswith(header)):
            # Some templates rewrite earlier turns; the text is right, but no span of it can be trusted.
            return [Span(apply(messages, add_generation_prompt=not conversation.ends_with_answer), False)]
        tail = answered[len(answered.rstrip()) :]
        spans += [Span(header[len(done) :], False), Span(answered[len(header) : len(answered) - len(tail)], True)]
        spans.append(Span(tail, False))
        done = answered
    if not conversation.ends_with_answer:
        whole = apply(messages, add_generation_prompt=True)
        if not whole.startswith(done):
            return [Span(whole, False)]
        spans.append(Span(whole[len(done) :], False))
    return [span for span in spans if span.text]


def _jinja_message(turn: Turn, say: Callable[[str], str]) -> dict[str, Any]:
    """For a template that knows tools, or a turn that has none."""
    if turn.role == "tool":
        (result,) = turn.parts
        assert isinstance(result, ToolResult)
        return {"role": "tool", "content": say(result.text), "tool_call_id": result.id}
    calls = called(turn, say)
    parts = [part for part in merged(turn) if not isinstance(part, ToolCall)]
    if calls or (len(parts) == 1 and isinstance(parts[0], Text)):
        said = {"role": turn.role, "content": "".join(say(part.text) for part in parts)}
        return {**said, "tool_calls": calls} if calls else said
    content = []
    for part in parts:
        if isinstance(part, Text):
            content.append({"type": "text", "text": say(part.text)})
        elif isinstance(part, Image):
            content.append({"type": "image"})
        else:
            content.append({"type": "video"})
    return {"role": turn.role, "content": content}


def _jinja_plain_message(turn: Turn, say: Callable[[str], str]) -> dict[str, Any]:
    """What has to do with tools as words."""
    if not any(isinstance(part, Tools | ToolCall | ToolResult) for part in turn.parts):
        return _jinja_message(turn, say)
    text = ""
    for part in merged(turn):
        text += worded(part, say, text)
    return {"role": "user" if turn.role == "tool" else turn.role, "content": text}


def _apply(spec: Spec, tools: list[Any] | None, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    assert spec.jinja is not None
    template = _compiled(spec.jinja)
    try:
        rendered = template.render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            bos_token=spec.bos or "",
            eos_token="",
        )
        return rendered.removeprefix(spec.bos or "")  # the processor puts it there, once
    except MessageError:
        raise
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise MessageError(f"The model's chat template refuses this conversation: {error}") from error


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> Any:
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise MessageError(f"The model's chat template refuses this conversation: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    known: dict[str, Any] = {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),  # now is when it is rendered
    }
    environment.globals.update(known)
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise ConfigError(f"The model's chat template is not valid Jinja: {error}") from error


def to_jinja(spec: Spec) -> str:
    """A Jinja text that renders what the spec renders, for folders that other libraries read."""
    if spec.jinja is not None:
        return spec.jinja
    template = find_template(spec.template)
    headers = {"system": template.system, "user": template.user, "assistant": template.assistant}
    system = quoted(spec.system if spec.system is not None else template.persona)
    opening = template.assistant if template.opening is None else template.opening
    return (
        "{%- if messages[0]['role'] != 'system' -%}"
        f"{{{{- {quoted(template.system)} + {system} + {quoted(template.turn_end)} -}}}}"
        "{%- endif -%}"
        "{%- for message in messages -%}"
        f"{{{{- {json.dumps(headers, ensure_ascii=False)}[message['role']] -}}}}"
        f"{{%- set said -%}}{_jinja_body(spec)}{{%- endset -%}}"
        f"{{%- if message['role'] == 'assistant' -%}}{_jinja_answer(template)}"
        f"{{%- else -%}}{{{{- said + {quoted(template.turn_end)} -}}}}{{%- endif -%}}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- {quoted(opening)} -}}}}{{%- endif -%}}"
    )


def _jinja_body(spec: Spec) -> str:
    """What `_turn_text` does."""
    label = " ~ counter.n ~ ".join(map(quoted, spec.image_label.split("{n}")))
    return (
        "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
        "{%- set images = message['content'] | selectattr('type', 'equalto', 'image') | list -%}"
        "{%- set counter = namespace(n=0) -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{%- set counter.n = counter.n + 1 -%}"
        "{%- if images | length > 1 -%}"
        f"{{{{- {label} -}}}}{{%- endif -%}}"
        f"{{{{- {quoted(spec.image_context)} + {quoted(spec.image_separator)} -}}}}"
        "{%- elif part['type'] == 'video' -%}"
        f"{{{{- {quoted(spec.video)} + {quoted(spec.image_separator)} -}}}}"
        "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}"
    )


def _jinja_answer(template: ChatTemplate) -> str:
    """What `ChatTemplate.said` and `ChatTemplate.end` do."""
    last, past = quoted(template.end(last=True)), quoted(template.end(last=False))
    plain = f"{{{{- {quoted(template.answer_start)} + said -}}}}"
    if template.thought_start:
        between = quoted(template.thought_end + template.answer_start)
        start, end = quoted(THINK_START), quoted(THINK_END)
        plain = (
            f"{{%- if {start} in said and {end} in said -%}}"
            f"{{%- set halves = said.rsplit({end}, 1) -%}}"
            f"{{{{- {quoted(template.thought_start)} + halves[0].split({start}, 1)[-1].strip() + {between}"
            " + halves[1].strip() -}}"
            f"{{%- else -%}}{plain}{{%- endif -%}}"
        )
    return plain + f"{{{{- {last} if loop.last else {past} -}}}}"


def quoted(text: str) -> str:
    """A string literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)


def with_tokens(jinja: str, **tokens: str | None) -> str:
    """A folder's template, told what its tokenizer calls `bos_token` and `eos_token` where it asks."""
    told = {name: token for name, token in tokens.items() if token and re.search(rf"\b{name}\b", jinja)}
    # A newline behind a block is not rendered: what follows is the template as it was.
    return "".join(f"{{% set {name} = {quoted(token)} %}}\n" for name, token in told.items()) + jinja
