"""Request bodies of OpenAI's API -> what is asked of the engine; anything unknown is refused, with a hint.

Fields: https://platform.openai.com/docs/api-reference/chat/create. Ours beside them: `top_k`, `min_p`,
`repetition_penalty`, `loop_guard`, `max_tiles`, `deadline_s`. Where a field is left out, the answer is greedy, as
everywhere in this program.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cascadevl.core.errors import MessageError
from cascadevl.core.generation import Constraint, Sampling
from cascadevl.core.messages import Conversation
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.refusals import Refused

Stop = Annotated[str, Field(min_length=1, max_length=256)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(_Strict):
    include_usage: bool = False


class JsonSchema(_Strict):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Body(_Strict):
    """What chats and completions have in common."""

    model: str | None = None
    n: int = Field(1, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    seed: int | None = Field(None, gt=-(2**62), lt=2**62)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    loop_guard: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    deadline_s: float | None = Field(None, gt=0)

    def sampling(self, **more: Any) -> Sampling:
        values: dict[str, Any] = {
            "max_new_tokens": self.max_tokens,
            **{
                name: getattr(self, name)
                for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "loop_guard")
            },
            "stop": tuple(self.stop) if isinstance(self.stop, list) else self.stop,
            **more,
        }
        return Sampling(**{name: value for name, value in values.items() if value is not None})


class ChatBody(Body):
    """POST /v1/chat/completions"""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tiles: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None


class CompletionBody(Body):
    """POST /v1/completions"""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)


class TokenizeBody(_Strict):
    """POST /tokenize"""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    max_tiles: int | None = Field(None, ge=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a body asks of the engine."""

    chat: bool
    prompts: tuple[Conversation | str | list[int], ...]
    sampling: Sampling = field(default_factory=Sampling)
    num: int = 1
    max_tiles: int | None = None
    stream: bool = False
    include_usage: bool = False
    deadline_s: float | None = None


NOT_YET: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "store": (False,),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
"""Fields of OpenAI's that change the answer and that we do not have: taken where they ask for nothing."""

WITHOUT_EFFECT = ("user", "metadata", "safety_identifier", "service_tier", "prompt_cache_key")
"""Fields of OpenAI's that change no answer."""


def read_chat(data: bytes, model: str, config: ServingConfig) -> Order:
    """Raises Refused or a UserError for whatever is wrong or unknown."""
    body = _read(ChatBody, data, model)
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise _wrong("max_completion_tokens", "differs from max_tokens, its older name: give one of them.")
    if body.top_logprobs is not None and not body.logprobs:
        raise _wrong("top_logprobs", "needs logprobs: true.")
    _bounded(body.max_tiles, config)
    sampling = body.sampling(
        max_new_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        constraint=_constraint(body.response_format),
    )
    prompts = (Conversation.parse([_message(message) for message in body.messages]),)
    return _order(body, prompts, sampling, config, chat=True, max_tiles=body.max_tiles)


def read_completion(data: bytes, model: str, config: ServingConfig) -> Order:
    """Raises Refused or a UserError for whatever is wrong or unknown."""
    body = _read(CompletionBody, data, model)
    prompt: Any = body.prompt
    several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    prompts = tuple(prompt) if several else (prompt,)
    return _order(body, prompts, body.sampling(logprobs=body.logprobs), config, chat=False)


def read_tokenize(data: bytes, model: str, config: ServingConfig) -> Order:
    """Raises Refused or a UserError for whatever is wrong or unknown."""
    body = _read(TokenizeBody, data, model)
    _bounded(body.max_tiles, config)
    if body.messages is not None and body.prompt is None:
        conversation = Conversation.parse([_message(message) for message in body.messages])
        return Order(chat=True, prompts=(conversation,), max_tiles=body.max_tiles)
    if body.prompt is None or body.messages is not None:
        raise _wrong("prompt", "or messages must be given, and not both.")
    return Order(chat=False, prompts=(body.prompt,))


def _order(
    body: Body,
    prompts: tuple[Any, ...],
    sampling: Sampling,
    config: ServingConfig,
    *,
    chat: bool,
    max_tiles: int | None = None,
) -> Order:
    if len(prompts) * body.n > config.max_choices:
        raise _wrong("n", f"asks for {len(prompts) * body.n} answers; at most {config.max_choices} are given.")
    if body.stream_options is not None and not body.stream:
        raise _wrong("stream_options", "needs stream: true.")
    return Order(
        chat=chat,
        prompts=prompts,
        sampling=sampling,
        num=body.n,
        max_tiles=max_tiles,
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        deadline_s=body.deadline_s,
    )


B = TypeVar("B", bound=BaseModel)


def _read(kind: type[B], data: bytes, model: str) -> B:
    values = read_json(data)
    for name, nothing in NOT_YET.items():
        if name in values and name not in kind.model_fields:
            if values[name] is not None and not any(_same(values[name], each) for each in nothing):
                raise Refused(400, f"{name!r} is not supported by this server yet.", code="unsupported", param=name)
            del values[name]
    for name in WITHOUT_EFFECT:
        values.pop(name, None)
    try:
        body = kind.model_validate(values)
    except ValidationError as error:
        raise _explained(error, kind) from None
    asked = getattr(body, "model", None)
    if asked is not None and asked != model:
        raise Refused(
            404, f"There is no model {asked!r:.200} here, but {model!r}.", code="model_not_found", param="model"
        )
    return body


def read_json(data: bytes) -> dict[str, Any]:
    """A JSON object of texts that UTF-8 can hold and of numbers that are finite. Raises Refused."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        values = json.loads(data, parse_constant=refuse)
        if b"\\u" in data:  # only an escape can bring a lone surrogate
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body cannot be read as JSON: {error}.", code="invalid_json") from None
    if not isinstance(values, dict):
        raise Refused(400, f"The body must be a JSON object, got {type(values).__name__}.", code="invalid_json")
    return values


def _same(value: Any, other: Any) -> bool:
    """Equal, and not as False equals 0."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _explained(error: ValidationError, kind: type[BaseModel]) -> Refused:
    """The first thing that is wrong, by the name of its field."""
    errors = error.errors(include_url=False, include_input=False)
    path = list(map(str, errors[0]["loc"]))
    param = ".".join(path)[:200]
    if errors[0]["type"] == "extra_forbidden":
        known = list(kind.model_fields) if len(path) == 1 else []
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}." if known else ""
        return Refused(400, f"Unknown field {param!r}.{hint}", code="unknown_field", param=param)
    # A field that takes several kinds has an error for each, with names of pydantic's behind its own.
    same = [each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]]
    if len(same) > 1:
        param = path[0]
    reasons = list(dict.fromkeys(each["msg"] for each in same))[:3]
    return Refused(400, f"{param!r}: {'; or: '.join(reasons)}.", code="invalid_value", param=param)


def _wrong(param: str, what: str) -> Refused:
    return Refused(400, f"{param!r} {what}", code="invalid_value", param=param)


def _bounded(max_tiles: int | None, config: ServingConfig) -> None:
    if (max_tiles or 0) > config.max_tiles:
        raise _wrong("max_tiles", f"is {max_tiles}; this server cuts a picture into {config.max_tiles} at most.")


def _constraint(format: ResponseFormat | None) -> Constraint | None:
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return Constraint("json_schema", '{"type": "object"}')
    if format.json_schema is None:
        raise _wrong("response_format", "of type 'json_schema' needs the field 'json_schema'.")
    return Constraint("json_schema", json.dumps(format.json_schema.schema_))


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """As `Conversation.parse` takes it. An answer of ours comes back with fields that are null, or empty lists."""
    told = {key: value for key, value in message.items() if value is not None and value != []}
    if told.get("role") == "developer":
        told["role"] = "system"
    if told.get("role") == "assistant":
        told.setdefault("content", "")
    if not isinstance(told.get("role", ""), str):
        raise MessageError(f"A role must be a text, got {told['role']!r:.80}.")
    return told
