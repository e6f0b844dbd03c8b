"""A conversation: turns made of parts. OpenAI-style dictionaries come in here and nowhere else."""

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cascadevl.core.config import fits
from cascadevl.core.errors import MediaError, MessageError

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text; strings that look like control tokens stay plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: path, bytes, PIL image, uint8 array of (rows, columns[, channels]), or data URL."""

    source: Any
    max_tiles: int | None = None
    """Tile limit of this picture alone; None leaves it to the preprocessing spec."""


@dataclass(frozen=True, slots=True)
class Video:
    """A video: path, bytes, data URL, a folder of frames, or a list of frames (each a picture as in `Image`)."""

    source: Any
    start_s: float | None = None
    end_s: float | None = None
    """The clip that is looked at; None: from the beginning, to the end."""
    num_frames: int | None = None
    """Frames that are looked at; None leaves it to the preprocessing spec, and takes a list as it is."""

    def __post_init__(self) -> None:
        for name, seconds in (("start", self.start_s), ("end", self.end_s)):
            if seconds is not None and not (fits(float, seconds) and 0 <= seconds < math.inf):
                raise MediaError(
                    f"A clip cannot {name} at {seconds!r}: expected seconds from the beginning, 0 or more."
                )
        if self.end_s is not None and self.end_s <= (self.start_s or 0):
            raise MediaError(f"A clip from {self.start_s or 0:g} s to {self.end_s:g} s is empty: it must end later.")
        if self.num_frames is not None and not (fits(int, self.num_frames) and self.num_frames >= 1):
            raise MediaError(f"num_frames is {self.num_frames!r}: expected a whole number, at least 1.")


Part = Text | Image | Video
"""What has to do with tools is Text as well: who knows nothing of tools still has every word that was said."""


@dataclass(frozen=True, slots=True)
class Tools(Text):
    """What the assistant may call, as a part of the system turn: a JSON list of OpenAI's function definitions."""


@dataclass(frozen=True, slots=True)
class ToolCall(Text):
    """What the assistant calls: a JSON object with the "name" of the tool and its "arguments"."""

    id: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult(Text):
    """What came out of a call."""

    id: str = ""
    """Of the call."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said, in order."""

    role: str
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise MessageError(
                f"Unknown role {self.role!r}. Expected one of {', '.join(ROLES)}.{_suggest(str(self.role), ROLES)}"
            )

    @property
    def text(self) -> str:
        """The text parts joined; media left out."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order: an optional system turn first, then user and assistant turns, and those of tools."""

    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        if not self.turns:
            raise MessageError("The conversation is empty: expected at least one user message.")
        called: set[str] = set()
        for number, turn in enumerate(self.turns):
            if turn.role == "system" and number > 0:
                raise MessageError(
                    f"Message {number} has the role 'system': only the first message may. "
                    "Move it to the front, or say it as the user."
                )
            called |= {part.id for part in turn.parts if isinstance(part, ToolCall)}
            _check_results(turn, number, called)
            if turn.role == "user" and not turn.text.strip() and not _has_media(turn):
                raise MessageError(f"Message {number} is empty: ask a question or attach a picture.")

    def with_tools(self, definitions: Sequence[Mapping[str, Any]]) -> "Conversation":
        """The same conversation in which the assistant may call functions, defined as OpenAI does."""
        if not definitions:
            return self
        tools = Tools(json.dumps(list(definitions), ensure_ascii=False))
        first, *rest = self.turns
        if first.role != "system":
            first, rest = Turn("system", ()), self.turns
        return Conversation((Turn("system", (*first.parts, tools)), *rest))

    @property
    def tools(self) -> list[dict[str, Any]]:
        """Definitions of the functions that may be called."""
        return [tool for part in self.turns[0].parts if isinstance(part, Tools) for tool in json.loads(part.text)]

    @property
    def images(self) -> tuple[Image, ...]:
        """All pictures, in the order in which they are said."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Image))

    @property
    def media(self) -> tuple["Image | Video", ...]:
        """All pictures and videos, in the order in which they are said."""
        return tuple(part for turn in self.turns for part in turn.parts if not isinstance(part, Text))

    @property
    def is_document(self) -> bool:
        """A single turn of the assistant, which nobody asked for: text with pictures between, without a template."""
        return [turn.role for turn in self.turns] == ["assistant"]

    @property
    def ends_with_answer(self) -> bool:
        return self.turns[-1].role == "assistant"

    @classmethod
    def ask(cls, question: str, images: Iterable[Any] = (), system: str | None = None) -> "Conversation":
        """One question about some pictures, which stand before the text."""
        if not isinstance(question, str) or not question.strip():
            raise MessageError(f"The question is empty ({question!r}): expected a text such as 'Read the text.'")
        turns = [Turn("system", (Text(system),))] if system is not None else []
        turns.append(Turn("user", (*map(Image, images), Text(question))))
        return cls(tuple(turns))

    @classmethod
    def parse(cls, messages: "Conversation | Sequence[Mapping[str, Any]] | str") -> "Conversation":
        """From OpenAI-style messages: `[{"role": …, "content": text or parts}, …]`.

        Raises MessageError for anything unknown, naming the message by its number.
        """
        if isinstance(messages, Conversation):
            return messages
        if isinstance(messages, str):
            return cls.ask(messages)
        if isinstance(messages, Mapping) or not isinstance(messages, Iterable):
            raise MessageError(f"Expected a list of messages, got {type(messages).__name__}.")
        return cls(tuple(_turn(message, number) for number, message in enumerate(messages)))


def _check_results(turn: Turn, number: int, called: set[str]) -> None:
    """A result belongs to a call before it."""
    results = [part for part in turn.parts if isinstance(part, ToolResult)]
    unknown = [result.id for result in results if result.id not in called]
    if unknown:
        raise MessageError(
            f"Message {number} answers the tool call {unknown[0]!r:.80}, which no message before it makes: keep the "
            "assistant's message with its 'tool_calls' in the conversation."
        )
    if (turn.role == "tool") != bool(results) or len(results) not in (0, len(turn.parts)):
        raise MessageError(f"Message {number}: the role 'tool', and no other, brings results of tools and only them.")


def _has_media(turn: Turn) -> bool:
    return any(not isinstance(part, Text) for part in turn.parts)


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _turn(message: Any, number: int) -> Turn:
    if isinstance(message, Turn):
        return message
    if not isinstance(message, Mapping):
        raise MessageError(f"Message {number}: expected a dictionary, got {type(message).__name__}.")
    role = message.get("role")
    fields = ("role", "content", *({"assistant": ("tool_calls",), "tool": ("tool_call_id",)}.get(str(role), ())))
    for key in message:
        if key not in (*fields, "name"):
            raise MessageError(
                f"Message {number}: unknown field {key!r}. Expected {' and '.join(map(repr, fields))}."
                f"{_suggest(str(key), fields)}"
            )
    if "role" not in message or ("content" not in message and "tool_calls" not in message):
        raise MessageError(f"Message {number}: expected the fields 'role' and 'content', got {sorted(message)}.")
    calls = _calls(message.get("tool_calls") or (), number)
    silent = calls and message.get("content") is None
    parts = () if silent else _content(message.get("content"), number)
    if role == "tool":
        parts = (_result(parts, message.get("tool_call_id"), number),)
    return Turn(message["role"], (*parts, *calls))


def _content(content: Any, number: int) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),)
    if isinstance(content, Mapping) or not isinstance(content, Iterable):
        raise MessageError(
            f"Message {number}: 'content' must be a text or a list of parts, got {type(content).__name__}."
        )
    return tuple(_part(part, number) for part in content)


def _result(parts: Sequence[Part], call_id: Any, number: int) -> ToolResult:
    if not isinstance(call_id, str) or not all(isinstance(part, Text) for part in parts):
        raise MessageError(f"Message {number}: the result of a tool is a text, with a 'tool_call_id' that is a text.")
    return ToolResult("".join(part.text for part in parts if isinstance(part, Text)), call_id)


def _calls(calls: Any, number: int) -> list[ToolCall]:
    """OpenAI's `tool_calls`, whose arguments are JSON in a string."""
    found = []
    try:
        for call in calls:
            arguments = call["function"]["arguments"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            name = call["function"]["name"]
            if not (isinstance(arguments, Mapping) and isinstance(name, str) and isinstance(call["id"], str)):
                raise TypeError
            said = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
            said.encode()
            found.append(ToolCall(said, call["id"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MessageError(
            f"Message {number}: 'tool_calls' must be a list of {{'id': …, 'type': 'function', 'function': {{'name': …, "
            f"'arguments': a JSON object in a string}}}}, got {calls!r:.120}."
        ) from error
    return found


def _part(part: Any, number: int) -> Part:
    if isinstance(part, Text | Image | Video):
        return part
    if not isinstance(part, Mapping) or "type" not in part:
        raise MessageError(f"Message {number}: a part must be a dictionary with a 'type', got {part!r:.80}.")
    kind = part["type"]
    if not isinstance(kind, str) or kind not in _PARTS:
        raise MessageError(
            f"Message {number}: unknown part type {kind!r}. Expected one of {', '.join(_PARTS)}."
            f"{_suggest(str(kind), _PARTS)}"
        )
    read, known = _PARTS[kind]
    if kind not in part:
        raise MessageError(f"Message {number}: a part of type {kind!r} needs the field {kind!r}.")
    for key in part:
        if key not in ("type", kind, *known):
            fields = (kind, *known)
            raise MessageError(
                f"Message {number}: a part of type {kind!r} has no field {key!r}. "
                f"Known: {', '.join(fields)}.{_suggest(str(key), fields)}"
            )
    return read(part, number)


def _text(part: Mapping[str, Any], number: int) -> Part:
    if not isinstance(part["text"], str):
        raise MessageError(f"Message {number}: 'text' must be a string, got {type(part['text']).__name__}.")
    return Text(part["text"])


def _image(part: Mapping[str, Any], number: int) -> Part:
    return Image(part["image"], _max_tiles(part, number))


def _image_url(part: Mapping[str, Any], number: int) -> Part:
    url = part["image_url"]
    if isinstance(url, Mapping):
        if "url" not in url:
            raise MessageError(f"Message {number}: 'image_url' needs the field 'url'.")
        if unknown := url.keys() - {"url", "detail"}:
            got = min(map(str, unknown))
            raise MessageError(f"Message {number}: 'image_url' has the fields 'url' and 'detail', got {got!r}.")
        detail = "auto" if url.get("detail") is None else url["detail"]
        if not isinstance(detail, str) or detail not in DETAIL:
            raise MessageError(f"Message {number}: detail {detail!r} is not one of {', '.join(DETAIL)}.")
        return Image(url["url"], _max_tiles(part, number) or DETAIL[detail])
    return Image(url, _max_tiles(part, number))


DETAIL: Mapping[str, int | None] = {"auto": None, "low": 6, "medium": 12, "high": 24}
"""OpenAI's `detail` as a tile limit, with the figures that LMDeploy uses."""


def _video(part: Mapping[str, Any], number: int) -> Part:
    return Video(part["video"], **_clip(part, number))


def _video_url(part: Mapping[str, Any], number: int) -> Part:
    url = part["video_url"]
    if isinstance(url, Mapping):
        if set(url) != {"url"}:
            raise MessageError(f"Message {number}: 'video_url' needs the field 'url' and no other, got {sorted(url)}.")
        url = url["url"]
    if not isinstance(url, str):
        raise MessageError(f"Message {number}: the url of a video must be a string, got {type(url).__name__}.")
    return Video(url, **_clip(part, number))


def _clip(part: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What is impossible is refused by `Video`, what is no number here."""
    clip = {}
    for key, field, kind in (("start", "start_s", float), ("end", "end_s", float), ("num_frames", "num_frames", int)):
        value = part.get(key)
        if value is not None and not fits(kind, value):
            expected = "a whole number" if kind is int else "a number of seconds"
            raise MessageError(f"Message {number}: {key!r} must be {expected}, got {value!r}.")
        clip[field] = value
    return clip


def _max_tiles(part: Mapping[str, Any], number: int) -> int | None:
    limit = part.get("max_tiles")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise MessageError(f"Message {number}: 'max_tiles' must be a positive integer, got {limit!r}.")
    return limit


_CLIP = ("start", "end", "num_frames")
_PARTS: dict[str, tuple[Callable[[Mapping[str, Any], int], Part], tuple[str, ...]]] = {
    "text": (_text, ()),
    "image": (_image, ("max_tiles",)),
    "image_url": (_image_url, ("max_tiles",)),
    "video": (_video, _CLIP),
    "video_url": (_video_url, _CLIP),
}
"""Type -> how it is read, and its fields beside the one of its own name."""
