"""The Responses API put as a chat: its items become messages, its wishes those of a chat, and one engine serves both.

https://platform.openai.com/docs/api-reference/responses/create. Nothing is stored: whoever goes on sends all items,
those that came as `output` included. Ours: `max_tiles`, also of an `input_image`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cascadevl.core.errors import MessageError
from cascadevl.core.generation import Sampling
from cascadevl.serving.bodies import ResponseBody
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.fields import read, unknown, wrong
from cascadevl.serving.openai import Order, bound_tiles, conversation, formed, schema_constraint
from cascadevl.serving.tools import ToolUse, tool_use

ITEMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "message": (("role", "content"), ()),
    "function_call": (("call_id", "name", "arguments"), ()),
    "function_call_output": (("call_id", "output"), ("name",)),
    "reasoning": ((), ("summary", "content", "encrypted_content")),
}
"""Type -> the fields that it needs and may have, beside those that every item of an answer brings along."""

_BROUGHT_ALONG = ("type", "id", "status", "phase", "boxes", "malformed_boxes")


def read_response(data: bytes, models: Sequence[str], config: ServingConfig) -> Order:
    """Raises Refused or a UserError for whatever is wrong or unknown."""
    body = read(ResponseBody, data, models)
    bound_tiles(body.max_tiles, config)
    if body.stream_options is not None and body.stream_options.include_usage is not None:
        raise wrong("stream_options", "has no include_usage here: the last event always has the usage.")
    if body.top_logprobs is not None and not body.include:
        raise wrong("top_logprobs", "needs include: ['message.output_text.logprobs'].")
    tools = tool_use(body.tools or (), body)
    format = body.text.format if body.text else None
    constraint = schema_constraint(format.type, format.schema_, "text.format") if format else None
    sampling = body.sampling(
        max_new_tokens=body.max_output_tokens,
        logprobs=(body.top_logprobs or 0) if body.include else None,
        **formed(tools, constraint, body.stop, "text.format"),
    )
    return Order(
        api="responses",
        model=body.model,
        prompts=(conversation(_messages(body), tools),),
        sampling=sampling,
        max_tiles=body.max_tiles,
        stream=bool(body.stream),
        deadline_s=body.deadline_s,
        tools=tools.names,
        told=_told(body, sampling, tools),
    )


def _told(body: ResponseBody, sampling: Sampling, tools: ToolUse) -> dict[str, Any]:
    """What an answer repeats of its question, and of what was settled where the question left it open."""
    format = body.text.format if body.text else None
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "parallel_tool_calls": tools.parallel,
        "previous_response_id": None,
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": format.model_dump(by_alias=True, exclude_none=True) if format else {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": sampling.logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "metadata": {},
    }


def _messages(body: ResponseBody) -> list[dict[str, Any]]:
    """As chats have them. Instructions come before the system message of the items, in one with it."""
    items: Sequence[Any] = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": [{"type": "text", "text": body.instructions}]})
    thought: str | None = None
    for number, item in enumerate(items):
        kind = item.get("type", "message")
        _check(item, kind, number)
        if kind == "message":
            _add_message(messages, item, number)
        elif kind == "function_call":
            _add_call(messages, item)
        elif kind == "function_call_output":
            output = _parts(item["output"], number)
            messages.append({"role": "tool", "content": output, "tool_call_id": item["call_id"]})
        else:
            thought = _thought(item)
            continue
        if thought and messages[-1]["role"] == "assistant":  # it was thought before what follows it was said
            messages[-1].setdefault("reasoning_content", thought)
        thought = None
    return messages


def _check(item: Mapping[str, Any], kind: Any, number: int) -> None:
    """Raises Refused for an item that nobody knows, or that lacks something."""
    if not isinstance(kind, str) or kind not in ITEMS:
        hint = " Nothing is stored here: send the item itself." if kind == "item_reference" else ""
        raise wrong(f"input.{number}.type", f"is {kind!r:.100}; known are {', '.join(ITEMS)}.{hint}")
    needed, others = ITEMS[kind]
    for name in item:
        if name not in (*needed, *others, *_BROUGHT_ALONG):
            raise unknown(f"input.{number}.{name}", name, [*needed, *others])
    missing = [name for name in needed if item.get(name) is None]
    if missing:
        raise wrong(f"input.{number}", f"is a {kind}, which needs the field {missing[0]!r}.")


def _add_message(messages: list[dict[str, Any]], item: Mapping[str, Any], number: int) -> None:
    role = "system" if item["role"] == "developer" else item["role"]
    content = _parts(item["content"], number)
    if role == "system" and [message["role"] for message in messages] == ["system"]:
        messages[0]["content"] += [{"type": "text", "text": "\n\n"}, *content]
    elif role in ("system", "user", "assistant"):
        messages.append({"role": role, "content": content})
    else:
        raise wrong(f"input.{number}.role", f"is {role!r:.100}: expected system, developer, user or assistant.")


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any]) -> None:
    """What the assistant said and called in one answer is one message."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    call = {"name": item["name"], "arguments": item["arguments"]}
    messages[-1].setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": call})


def _thought(item: Mapping[str, Any]) -> str:
    content = item.get("content") or ()
    return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))


def _parts(content: Any, number: int) -> list[dict[str, Any]]:
    """Parts as chats have them."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise MessageError(f"Item {number}: expected a text or a list of parts, got {type(content).__name__}.")
    return [_part(part, number) for part in content]


def _part(part: Any, number: int) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": part.get("text")}
    if kind in ("input_image", "input_video"):
        return _medium(part, kind.removeprefix("input_"), number)
    raise MessageError(
        f"Item {number}: unknown part {part!r:.80}. Expected the type input_text, output_text, input_image or "
        "input_video."
    )


def _medium(part: Mapping[str, Any], kind: str, number: int) -> dict[str, Any]:
    url = part.get(f"{kind}_url")
    if not isinstance(url, str):
        files = " Files are not stored here." if part.get("file_id") else ""
        raise MessageError(f"Item {number}: an input_{kind} needs {kind}_url, a data URL.{files}")
    detail = {"detail": part["detail"]} if part.get("detail") is not None else {}
    rest = {key: value for key, value in part.items() if key not in ("type", f"{kind}_url", "detail", "file_id")}
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url, **detail}, **rest}
