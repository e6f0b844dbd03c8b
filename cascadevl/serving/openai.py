"""Bodies of OpenAI's API -> what is asked of the engine. Responses, put otherwise, have a file of their own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cascadevl.core.errors import MessageError
from cascadevl.core.generation import Constraint, Sampling
from cascadevl.core.messages import Conversation
from cascadevl.preprocessing.parse import THINK_END, THINK_START
from cascadevl.serving.bodies import Body, ChatBody, CompletionBody, ResponseFormat, TokenizeBody
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.fields import read, wrong
from cascadevl.serving.tools import ToolUse, tool_use


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a body asks of the engine."""

    api: Literal["chat", "completions", "responses"]
    """In whose form it is answered."""
    model: str | None = None
    """Which of those served is asked; None: the first."""
    prompts: tuple[Conversation | str | list[int], ...]
    sampling: Sampling = field(default_factory=Sampling)
    num: int = 1
    max_tiles: int | None = None
    stream: bool = False
    include_usage: bool = False
    deadline_s: float | None = None
    tools: frozenset[str] = frozenset()
    """Names of the functions that may be called."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """What the answer repeats of the question."""


def read_chat(data: bytes, models: Sequence[str], config: ServingConfig) -> Order:
    """Raises Refused or a UserError for whatever is wrong or unknown."""
    body = read(ChatBody, data, models)
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise wrong("max_completion_tokens", "differs from max_tokens, its older name: give one of them.")
    if body.top_logprobs is not None and not body.logprobs:
        raise wrong("top_logprobs", "needs logprobs: true.")
    bound_tiles(body.max_tiles, config)
    tools = tool_use([tool.function for tool in body.tools or ()], body)
    sampling = body.sampling(
        max_new_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        **formed(tools, _constraint(body.response_format), body.stop, "response_format"),
    )
    prompt = conversation(body.messages, tools)
    return _order(body, (prompt,), sampling, config, api="chat", max_tiles=body.max_tiles, tools=tools.names)


def read_completion(data: bytes, models: Sequence[str], config: ServingConfig) -> Order:
    """Raises Refused or a UserError for whatever is wrong or unknown."""
    body = read(CompletionBody, data, models)
    prompt: Any = body.prompt
    several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    prompts = tuple(prompt) if several else (prompt,)
    return _order(body, prompts, body.sampling(max_new_tokens=body.max_tokens, logprobs=body.logprobs), config)


def read_tokenize(data: bytes, models: Sequence[str], config: ServingConfig) -> Order:
    """Raises Refused or a UserError for whatever is wrong or unknown."""
    body = read(TokenizeBody, data, models)
    bound_tiles(body.max_tiles, config)
    if body.messages is not None and body.prompt is None:
        tools = ToolUse(tuple(tool.function for tool in body.tools or ()))
        prompt = conversation(body.messages, tools)
        return Order(api="chat", model=body.model, prompts=(prompt,), max_tiles=body.max_tiles)
    if body.prompt is None or body.messages is not None:
        raise wrong("prompt", "or messages must be given, and not both.")
    return Order(api="completions", model=body.model, prompts=(body.prompt,))


def conversation(messages: Sequence[Mapping[str, Any]], tools: ToolUse) -> Conversation:
    """Raises MessageError."""
    return Conversation.parse([_message(message) for message in messages]).with_tools(tools.definitions)


def formed(tools: ToolUse, constraint: Constraint | None, stop: Any, param: str) -> dict[str, Any]:
    """What the wishes for calls and for a form make of the sampling. Raises Refused where they contradict."""
    if tools.functions and constraint is not None:
        raise wrong(param, "holds the whole answer to a form, which leaves no room for calls: send tool_choice 'none'.")
    wanted = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return {"constraint": tools.constraint or constraint, "stop": (*wanted, *tools.stop)}


def bound_tiles(max_tiles: int | None, config: ServingConfig) -> None:
    """Raises Refused."""
    if (max_tiles or 0) > config.max_tiles:
        raise wrong("max_tiles", f"is {max_tiles}; this server cuts a picture into {config.max_tiles} at most.")


def schema_constraint(kind: str, schema: dict[str, Any] | None, param: str) -> Constraint | None:
    """Of a `response_format` or a `text.format`."""
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint("json_schema", '{"type": "object"}')
    if schema is None:
        raise wrong(param, "of type 'json_schema' needs a schema.")
    return Constraint("json_schema", json.dumps(schema))


def _constraint(format: ResponseFormat | None) -> Constraint | None:
    if format is None:
        return None
    schema = format.json_schema.schema_ if format.json_schema else None
    return schema_constraint(format.type, schema, "response_format")


def _order(
    body: Body,
    prompts: tuple[Any, ...],
    sampling: Sampling,
    config: ServingConfig,
    *,
    api: Literal["chat", "completions"] = "completions",
    **more: Any,
) -> Order:
    if len(prompts) * body.n > config.max_choices:
        raise wrong("n", f"asks for {len(prompts) * body.n} answers; at most {config.max_choices} are given.")
    if body.stream_options is not None and not body.stream:
        raise wrong("stream_options", "needs stream: true.")
    return Order(
        api=api,
        model=body.model,
        prompts=prompts,
        sampling=sampling,
        num=body.n,
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
        deadline_s=body.deadline_s,
        **more,
    )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """As `Conversation.parse` takes it. An answer of ours comes back with fields that are null, or empty lists."""
    told = {key: value for key, value in message.items() if value is not None and value != []}
    if told.get("role") == "developer":
        told["role"] = "system"
    if told.get("role") == "assistant":
        told.setdefault("content", "")
        thinking = told.pop("reasoning_content", None)
        if isinstance(thinking, str):
            told["content"] = _thoughtful(thinking, told["content"])
    if not isinstance(told.get("role", ""), str):
        raise MessageError(f"A role must be a text, got {told['role']!r:.80}.")
    return told


def _thoughtful(thinking: str, content: Any) -> Any:
    """An answer with its thinking, as the model said it."""
    thought = f"{THINK_START}\n{thinking}\n{THINK_END}\n\n"
    if isinstance(content, list):
        return [{"type": "text", "text": thought}, *content]
    return thought + content if isinstance(content, str) else content
