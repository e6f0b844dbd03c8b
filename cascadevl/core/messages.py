"""A conversation: turns made of parts. OpenAI-style dictionaries come in here and nowhere else."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cascadevl.core.errors import MessageError

ROLES = ("system", "user", "assistant")


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
    """A video: a path or a list of frames (each a picture as in `Image`)."""

    source: Any


Part = Text | Image | Video


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
    """Turns in order: an optional system turn first, then user and assistant turns."""

    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        if not self.turns:
            raise MessageError("The conversation is empty: expected at least one user message.")
        for number, turn in enumerate(self.turns):
            if turn.role == "system" and number > 0:
                raise MessageError(
                    f"Message {number} has the role 'system': only the first message may. "
                    "Move it to the front, or say it as the user."
                )
            if turn.role == "user" and not turn.text.strip() and not _has_media(turn):
                raise MessageError(f"Message {number} is empty: ask a question or attach a picture.")

    @property
    def images(self) -> tuple[Image, ...]:
        """All pictures, in the order in which they are said."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Image))

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

    def with_images(self, images: Sequence[Any]) -> "Conversation":
        """The same conversation with `images` put before the text of the first user turn."""
        if not images:
            return self
        for number, turn in enumerate(self.turns):
            if turn.role == "user":
                first = dataclasses.replace(turn, parts=(*map(Image, images), *turn.parts))
                return Conversation((*self.turns[:number], first, *self.turns[number + 1 :]))
        raise MessageError("Pictures were given, but no user message to attach them to.")


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
    for key in message:
        if key not in ("role", "content", "name"):
            raise MessageError(
                f"Message {number}: unknown field {key!r}. Expected 'role' and 'content'."
                f"{_suggest(str(key), ('role', 'content'))}"
            )
    if "role" not in message or "content" not in message:
        raise MessageError(f"Message {number}: expected the fields 'role' and 'content', got {sorted(message)}.")
    content = message["content"]
    if isinstance(content, str):
        return Turn(message["role"], (Text(content),))
    if isinstance(content, Mapping) or not isinstance(content, Iterable):
        raise MessageError(
            f"Message {number}: 'content' must be a text or a list of parts, got {type(content).__name__}."
        )
    return Turn(message["role"], tuple(_part(part, number) for part in content))


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
    if kind not in part:
        raise MessageError(f"Message {number}: a part of type {kind!r} needs the field {kind!r}.")
    return _PARTS[kind](part, number)


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
        detail = url.get("detail", "auto")
        if not isinstance(detail, str) or detail not in DETAIL:
            raise MessageError(f"Message {number}: detail {detail!r} is not one of {', '.join(DETAIL)}.")
        return Image(url["url"], _max_tiles(part, number) or DETAIL[detail])
    return Image(url, _max_tiles(part, number))


DETAIL: Mapping[str, int | None] = {"auto": None, "low": 6, "medium": 12, "high": 24}
"""OpenAI's `detail` as a tile limit, with the figures that LMDeploy uses."""


def _video(part: Mapping[str, Any], number: int) -> Part:
    return Video(part["video"])


def _max_tiles(part: Mapping[str, Any], number: int) -> int | None:
    limit = part.get("max_tiles")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise MessageError(f"Message {number}: 'max_tiles' must be a positive integer, got {limit!r}.")
    return limit


_PARTS = {"text": _text, "image": _image, "image_url": _image_url, "video": _video}
