"""What stands in the fields of a row: roles, texts, and where pictures and videos lie."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cascadevl.core.messages import Image, Video
from cascadevl.data.assemble import DOCUMENT, Media
from cascadevl.data.rows import Row
from cascadevl.preprocessing.video import VIDEO_SUFFIXES

ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}
"""What the formats call the sides."""
MENDED_ROLES = {
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
"""What some exports call them besides."""
CONTROLS = (
    *("<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
"""What other programs leave in texts that they have rendered for a model."""

_BARE_BASE64 = re.compile(r"(/9j/|iVBORw0KGgo|UklGR|R0lGOD)[A-Za-z0-9+/\s]{60,}=*\s*")
"""A JPEG, PNG, WebP or GIF in base64, and nothing that says so."""
_SPOILT = re.compile(r"[\x00\ud800-\udfff]|\r\n?")


def read_role(role: Any, number: int, row: Row) -> str:
    if isinstance(role, str):
        if role in ROLES:
            return ROLES[role]
        if role == DOCUMENT:
            return DOCUMENT
        plain = role.strip().lower()
        if plain in ROLES or plain in MENDED_ROLES:
            meant = ROLES.get(plain) or MENDED_ROLES[plain]
            row.mend("unknown role", f"Turn {number} has the role {role!r}.", f"Call it {meant!r}.")
            return meant
    raise row.bad(
        "unknown role",
        f"Turn {number} has the role {role!r}.",
        f"Expected {', '.join(ROLES)}" + ("; of tools only the form 'messages' tells." if role == "function" else "."),
    )


def read_text(value: Any, name: str, row: Row) -> str:
    if not isinstance(value, str):
        raise row.bad("no text", f"{name} is {short(value)}.", "Expected a text.")
    for control in CONTROLS:
        if control in value:
            raise row.bad(
                "control token",
                f"{name} contains {control}: the text was rendered for a model already.",
                "Give the text without it; the chat template writes it.",
            )
    if spoilt := _SPOILT.search(value):
        what = "a carriage return" if spoilt[0][0] == "\r" else f"the character {spoilt[0]!r}"
        row.mend("spoilt text", f"{name} contains {what}.", "Write \\n for line breaks, and delete broken characters.")
        value = _SPOILT.sub(lambda match: "\n" if match[0][0] == "\r" else "", value)
    return value


def read_media(fields: Mapping[str, Any], root: Path, row: Row) -> Media:
    images = [
        Image(read_source(source, root, row)) for source in _listed(fields, ("image", "images", "file_name"), row)
    ]
    videos = []
    found = _listed(fields, ("video", "videos"), row)
    if isinstance(fields.get("video"), list) and not any(map(_is_video_file, found)):
        found = [found]  # frames
    for source in found:
        frames = [read_source(frame, root, row) for frame in source] if isinstance(source, list) else None
        clip = fields.get("clip") or (None, None)
        if not isinstance(clip, list | tuple) or len(clip) != 2:
            raise row.bad("clip", f"'clip' is {short(clip)}.", "Expected [start, end] in seconds.")
        videos.append(Video(frames or read_source(source, root, row), *clip))
    return Media(tuple(images), tuple(videos))


def _is_video_file(source: Any) -> bool:
    return isinstance(source, str) and source.lower().endswith(VIDEO_SUFFIXES)


def _listed(fields: Mapping[str, Any], names: tuple[str, ...], row: Row) -> list[Any]:
    """What stands under one of the names: the singular takes one or a list, the plural a list."""
    have = [name for name in names if name in fields and fields[name] != []]
    if len(have) > 1 and fields[have[0]] not in (fields[have[1]], [fields[have[1]]]):
        raise row.bad("two columns", f"The row has both {have[0]!r} and {have[1]!r}.", "Keep one of them.")
    if not have:
        return []
    name, value = have[0], fields[have[0]]
    if value == "":
        row.mend("empty path", f"{name!r} is an empty text.", "Leave it out where there is no picture or video.")
        return []
    if isinstance(value, list):
        return value
    if name.endswith("s"):
        row.mend(f"{name} are no list", f"{name!r} is {short(value)}.", "Put it into a list, […].")
    return [value]


def read_json(text: str, name: str, row: Row) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise row.bad("not JSON", f"{name} is no JSON: {error}.", "Write it as JSON.") from None


def read_source(value: Any, root: Path, row: Row) -> str | bytes:
    """The path of a file, from `root`, or its bytes, or a data URL."""
    if isinstance(value, Mapping):
        if value.get("data"):  # as Anthropic's messages have it
            return f"data:{value.get('media_type')};base64,{value['data']}"
        value = value.get("bytes") or value.get("path") or value.get("url")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise row.bad("no path", f"A picture or video is given as {short(value)}.", "Expected a path, or its bytes.")
    if value[:5].lower() == "data:":
        return value
    if _BARE_BASE64.fullmatch(value):
        row.mend("bare base64", f"{value!r:.40}… is a picture in base64.", "Write 'data:image/png;base64,' before it.")
        return f"data:image/png;base64,{value}"  # of which kind it is, its bytes say
    if value.startswith("file://"):
        value = value.removeprefix("file://")
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", value):
        raise row.bad(
            "remote address", f"{value!r:.120} is not fetched.", "Download the file and give its path in its place."
        )
    return os.path.join(root, value)


def short(value: Any) -> str:
    """How a value is called in messages."""
    if value is None:
        return "missing"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return f"the {type(value).__name__} {value!r:.60}"
