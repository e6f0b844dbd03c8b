"""A conversation as a row of the form `messages`, which reads back as the same conversation."""

import base64
import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cascadevl.core.files import as_usual
from cascadevl.core.messages import Conversation, Image, Part, Text, ToolCall, ToolResult, Tools, Turn
from cascadevl.data.assemble import DOCUMENT

_KINDS = {
    rb"\x89PNG": "image/png",
    rb"\xff\xd8\xff": "image/jpeg",
    rb"RIFF....WEBP": "image/webp",
    rb"GIF8": "image/gif",
    rb"BM": "image/bmp",
    rb"II|MM": "image/tiff",
}


def to_row(conversation: Conversation, folder: Path, *, id: Any = None, max_tiles: int | None = None) -> dict[str, Any]:
    """Paths below `folder` become relative to it, so that both may be moved; bytes become data URLs.

    `max_tiles` is written to every picture that has no tile limit of its own.
    """
    fields: dict[str, Any] = {} if id is None else {"id": id}
    role = DOCUMENT if conversation.is_document else None
    messages = [_message(turn, role or turn.role, folder, max_tiles) for turn in conversation.turns]
    fields["messages"] = [message for message in messages if len(message) > 1]
    if conversation.tools:
        fields["tools"] = conversation.tools
    return fields


def _message(turn: Turn, role: str, folder: Path, max_tiles: int | None) -> dict[str, Any]:
    if turn.role == "tool":
        (result,) = (part for part in turn.parts if isinstance(part, ToolResult))
        return {"role": role, "tool_call_id": result.id, "content": result.text}
    parts = [part for part in turn.parts if not isinstance(part, ToolCall | Tools)]
    message: dict[str, Any] = {"role": role}
    if parts and all(isinstance(part, Text) for part in parts):
        message["content"] = "".join(part.text for part in parts if isinstance(part, Text))
    elif parts:
        message["content"] = [_part(part, folder, max_tiles) for part in parts]
    calls = [_call(part) for part in turn.parts if isinstance(part, ToolCall)]
    return {**message, "tool_calls": calls} if calls else message


def _call(call: ToolCall) -> dict[str, Any]:
    said = json.loads(call.text)
    function = {"name": said["name"], "arguments": json.dumps(said["arguments"], ensure_ascii=False)}
    return {"id": call.id, "type": "function", "function": function}


def _part(part: Part, folder: Path, max_tiles: int | None) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        limit = part.max_tiles or max_tiles
        address = {"type": "image_url", "image_url": {"url": _address(part.source, folder)}}
        return {**address, "max_tiles": limit} if limit else address
    source = part.source
    shown = [_address(frame, folder) for frame in source] if isinstance(source, list) else _address(source, folder)
    clip = {"start": part.start_s, "end": part.end_s, "num_frames": part.num_frames}
    return {"type": "video", "video": shown, **{key: value for key, value in clip.items() if value is not None}}


def _address(source: str | bytes, folder: Path) -> str:
    if isinstance(source, bytes):
        kind = next((kind for magic, kind in _KINDS.items() if re.match(magic, source, re.DOTALL)), "video/mp4")
        return f"data:{kind};base64,{base64.b64encode(source).decode()}"
    if source[:5].lower() == "data:":
        return source
    path, folder = os.path.abspath(source), folder.resolve()
    return os.path.relpath(path, folder) if Path(path).is_relative_to(folder) else path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """A text file to be written line by line, which takes the place of `path` when all went well."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            yield file.file
        except BaseException:
            os.unlink(file.name)
            raise
    as_usual(Path(file.name))
    os.replace(file.name, path)
