"""Which fields a body may have: ours, those of OpenAI's that mean nothing here, and a hint for every other."""

import difflib
import json
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cascadevl.serving.refusals import Refused

ANYTHING = "anything"

MOST_VALUES = 500_000
"""Of a body: a value of three bytes takes a hundred in memory, and far more once it is looked at."""
MOST_MISTAKES = 1000
"""Of a body, for the first to be looked for among them: pydantic tells of all or none, in a kilobyte each."""

_NOTHING_STORED = "Nothing is stored here: send the whole conversation each time"
_TOOLS = "Functions are called through 'tools' and 'tool_choice'"

FOREIGN: dict[str, tuple[Any, str]] = {
    # Change no answer, whatever they say.
    "user": (ANYTHING, ""),
    "metadata": (ANYTHING, ""),
    "safety_identifier": (ANYTHING, ""),
    "service_tier": (ANYTHING, ""),
    "prompt_cache_key": (ANYTHING, ""),
    "prompt_cache_options": (ANYTHING, ""),
    "prompt_cache_retention": (ANYTHING, ""),
    "prediction": (ANYTHING, ""),
    "max_tool_calls": (ANYTHING, ""),  # of OpenAI's own tools, which are not here
    # Ask for what is not here, but for these values.
    "store": ([False], f"{_NOTHING_STORED}, with store: false or without it"),
    "previous_response_id": ([], _NOTHING_STORED),
    "conversation": ([], _NOTHING_STORED),
    "prompt": ([], f"{_NOTHING_STORED}, prompts neither"),
    "background": ([False], "Answers are not kept for later: ask for a stream"),
    "context_management": ([[]], "Nothing is taken out of a conversation here: send what the model shall read"),
    "truncation": (["disabled"], "A prompt that is too long is refused: send less of it"),
    "modalities": ([["text"]], "Answers are text"),
    "audio": ([], "Answers are text"),
    "image": ([], "Pictures are bounded by 'detail' and 'max_tiles'"),
    "web_search_options": ([], "The model searches nowhere"),
    "moderation": ([], "Nothing is moderated here"),
    "access_programs": ([], "There are none here"),
    "reasoning": ([{}], "Whether and how long a model thinks is said in its system prompt"),
    "reasoning_effort": ([], "Whether and how long a model thinks is said in its system prompt"),
    "verbosity": (["medium"], "Say in the prompt how long the answer shall be"),
    "functions": ([[]], _TOOLS),
    "function_call": (["none"], _TOOLS),
    "echo": ([False], "The prompt is not repeated: put it before the answer yourself"),
    "suffix": ([""], "Texts are only continued, not filled in"),
    "best_of": ([1], "Ask for n answers with logprobs and choose"),
}
"""Fields of OpenAI's that no body of ours has: values that are taken and ignored (null always is), and what is said
of others."""

SAME: dict[str, tuple[str, ...]] = {
    "max_tokens": ("max_output_tokens",),
    "max_completion_tokens": ("max_output_tokens", "max_tokens"),
    "max_output_tokens": ("max_completion_tokens", "max_tokens"),
    "max_new_tokens": ("max_completion_tokens", "max_output_tokens", "max_tokens"),
    "min_new_tokens": ("min_tokens",),
    "messages": ("input", "prompt"),
    "input": ("messages", "prompt"),
    "prompt": ("messages", "input"),
    "response_format": ("text",),
    "text": ("response_format",),
}
"""Fields that another body calls otherwise, although the names are not alike."""

B = TypeVar("B", bound=BaseModel)


def read(kind: type[B], data: bytes, models: Sequence[str]) -> B:
    """A body with the fields of `kind`, for one of the models that are served. Raises Refused."""
    values = read_json(data)
    for name in [name for name in values if name in FOREIGN and name not in kind.model_fields]:
        taken, hint = FOREIGN[name]
        value = values.pop(name)
        if value is not None and taken is not ANYTHING and not any(_same(value, each) for each in taken):
            raise Refused(400, f"{name!r} is not supported by this server. {hint}.", code="unsupported", param=name)
    try:
        body = kind.model_validate(values)
    except ValidationError as error:
        raise _explained(error, kind) from None
    asked = getattr(body, "model", None)
    if asked is not None and asked not in models:
        known = ", ".join(map(repr, models))
        raise Refused(
            404, f"There is no model {asked!r:.200} here, but {known}.", code="model_not_found", param="model"
        )
    return body


def read_json(data: bytes) -> dict[str, Any]:
    """A JSON object of texts that UTF-8 can hold and of numbers that are finite. Raises Refused."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise Refused(
            413, f"The body has more than {MOST_VALUES:,} values. Send less at a time.", code="body_too_large"
        )
    try:
        values = json.loads(data, parse_constant=refuse)
        if b"\\u" in data:  # only an escape can bring a lone surrogate
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body cannot be read as JSON: {error}.", code="invalid_json") from None
    if not isinstance(values, dict):
        raise Refused(400, f"The body must be a JSON object, got {type(values).__name__}.", code="invalid_json")
    return values


def wrong(param: str, what: str) -> Refused:
    """A field whose value cannot be meant."""
    return Refused(400, f"{param!r} {what}", code="invalid_value", param=param)


def unknown(param: str, field: str, known: list[str]) -> Refused:
    """A field that nobody knows, with the nearest one that exists."""
    close = [name for name in SAME.get(field, ()) if name in known] or difflib.get_close_matches(field, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}." if known else ""
    return Refused(400, f"Unknown field {param!r:.200}.{hint}", code="unknown_field", param=param[:200])


def _same(value: Any, other: Any) -> bool:
    """Equal, and not as False equals 0."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _explained(error: ValidationError, kind: type[BaseModel]) -> Refused:
    """The first thing that is wrong, by the name of its field."""
    if error.error_count() > MOST_MISTAKES:
        count = f"The body has {error.error_count():,} mistakes"
        return Refused(400, f"{count}. /openapi.json tells what one looks like.", code="invalid_value")
    errors = error.errors(include_url=False, include_input=False)
    # A field that nobody knows explains best why one that is needed is missing.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    path = list(map(str, first["loc"]))
    param = ".".join(path)[:200]
    if first["type"] == "extra_forbidden":
        return unknown(param, path[-1], _names(kind, path[:-1]))
    # A field that takes several kinds has an error for each, with names of pydantic's behind its own.
    same = [each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]]
    if len(same) > 1:
        param = path[0]
    # Where one of the kinds is right and its value is not, the others would only say that they are other kinds.
    same = [each for each in same if not each["type"].endswith("_type")] or same
    reasons = list(dict.fromkeys(each["msg"] for each in same))[:3]
    return Refused(400, f"{param!r}: {'; or: '.join(reasons)}.", code="invalid_value", param=param)


def _names(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Names of the fields at the end of a path of names and numbers; none where that cannot be told."""
    for step in path:
        if step.isdecimal():
            continue
        fields = {field.alias or name: field for name, field in kind.model_fields.items()}
        inner = list(_models(fields[step].annotation)) if step in fields else []
        if len(inner) != 1:
            return []
        (kind,) = inner
    return [field.alias or name for name, field in kind.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in typing.get_args(annotation):
        yield from _models(each)
