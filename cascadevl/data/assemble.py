"""Turns whose texts mark where pictures stand, and the pictures, become a conversation to learn from.

`<image>` and `<video>` are the marks. One picture that is marked nowhere stands in front of the first question, as
in the released code (InternVL, chat/train/dataset.py); more of them are refused. A newline behind a mark and the
labels `Image-1: ` belong to the chat template, which writes them itself. A document is a conversation of a single
turn of the assistant; it has no template, and its texts stay as they are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cascadevl.core.messages import Conversation, Image, Part, Text, Turn, Video
from cascadevl.data.rows import Row

DOCUMENT = "pretrain"
"""InternVL's name for the one turn of a document."""

_MARK = re.compile(r"<(image|video)>")
_ODD_MARK = re.compile(r"<\s*(image|video)\s*>|<(image|video)\s*here>", re.IGNORECASE)
_LABELLED = re.compile(r"Image-(\d{1,3}): ?<image>")
_SHOWN_IN = ("user", DOCUMENT)

Said = str | tuple[Part | None, ...]
"""A text with marks, or parts; None stands for a picture of the row's own list."""


@dataclass(frozen=True, slots=True)
class Media:
    """The pictures and videos of a row that the texts mark, in order."""

    images: tuple[Image, ...] = ()
    videos: tuple[Video, ...] = ()


def is_marked(text: str) -> bool:
    return bool(_MARK.search(text))


def assemble(said: Sequence[tuple[str, Said]], media: Media, row: Row) -> Conversation:
    """Turns whose texts mark the media become parts. Raises DataError for what nobody can learn from."""
    if any(role == DOCUMENT for role, _ in said):
        if len(said) > 1:
            raise row.bad("document", f"A {DOCUMENT!r} turn stands among others.", "Keep documents as single turns.")
        parts = _place(said, media, row)[0][1]
        if not any(isinstance(part, Text) and part.text.strip() for part in parts):
            raise row.bad("empty document", "The document has no text.", "Leave the row out.")
        return Conversation((Turn("assistant", parts),))
    if said[0][0] == "assistant" and any(role == "user" for role, _ in said):
        row.mend("begins with an answer", "The first turn is the assistant's.", "Begin with a question, or delete it.")
        said = said[1:]
    if said[-1][0] != "assistant" and any(role == "assistant" for role, _ in said):
        row.mend("ends with a question", "No answer follows the last question.", "Answer it or delete it.")
        said = said[: max(i for i, (role, _) in enumerate(said) if role == "assistant") + 1]
    roles = [role for role, _ in said]
    if "assistant" not in roles:
        raise row.bad("no answer", "No turn is the assistant's: nothing would be learned.", "Add an answer.")
    if "user" not in roles:
        raise row.bad("no question", "No turn is the user's.", "Add a question, or give a document as 'text'.")
    turns = [Turn(role, parts) for role, parts in _place(said, media, row)]
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not turn.text.strip():
            raise row.bad(
                "empty answer", f"Turn {number} is an empty answer.", "Write the answer, or leave the row out."
            )
    return Conversation(tuple(turns))


def _place(said: Sequence[tuple[str, Said]], media: Media, row: Row) -> list[tuple[str, tuple[Part, ...]]]:
    """Every mark becomes its picture or video; as many are marked as there are."""
    turns = [(role, _split(content, role, row)) for role, content in _respelt(said, media, row)]
    for kind, found in ((Image, media.images), (Video, media.videos)):
        num_marks = sum(part is kind for _, parts in turns for part in parts)
        if len(found) and not num_marks:
            _put_first(turns, kind, len(found), row)
        elif num_marks != len(found):
            name = kind.__name__.lower()
            raise row.bad(
                f"number of {name}s",
                f"The texts mark {num_marks} {name}(s) with <{name}>, the row has {len(found)}.",
                f"Write <{name}> once for each, where it stands.",
            )
    pending = {Image: iter(media.images), Video: iter(media.videos)}
    return [
        (role, tuple(next(pending[part]) if isinstance(part, type) else part for part in parts))
        for role, parts in turns
    ]


def _respelt(said: Sequence[tuple[str, Said]], media: Media, row: Row) -> Sequence[tuple[str, Said]]:
    """`<Image>` and `<ImageHere>` are marks where no other marks the media, and as many stand there."""
    texts = {n: text for n, (role, text) in enumerate(said) if role in _SHOWN_IN and isinstance(text, str)}
    odd = [mark for text in texts.values() for mark in _ODD_MARK.finditer(text)]
    if not odd or any(map(is_marked, texts.values())) or len(odd) != len(media.images) + len(media.videos):
        return said
    row.mend("odd mark", f"A picture or video is marked by {odd[0][0]!r}.", "Write <image> or <video>.")
    plain = {n: _ODD_MARK.sub(lambda mark: f"<{(mark[1] or mark[2]).lower()}>", text) for n, text in texts.items()}
    return [(role, plain.get(n, content)) for n, (role, content) in enumerate(said)]


def _put_first(turns: list[tuple[str, list[Any]]], kind: type, num: int, row: Row) -> None:
    """Pictures that no text marks stand in front of the first question."""
    name = kind.__name__.lower()
    if num > 1:
        row.mend(
            f"{name}s not marked",
            f"The row has {num} {name}s, and no text says where they stand.",
            f"Write <{name}> {num} times, such as in front of the first question.",
        )
    parts = next(parts for role, parts in turns if role in _SHOWN_IN)
    parts[:0] = [kind] * num


def _split(content: Said, role: str, row: Row) -> list[Any]:
    """Parts, with the class `Image` or `Video` where one of the row's own belongs."""
    parts: list[Any] = []
    for piece in [Text(content)] if isinstance(content, str) else content:
        # What has to do with tools is a kind of Text too, and marks nothing.
        text = piece.text if isinstance(piece, Text) and type(piece) is Text else ""
        mark = _MARK.search(text)
        if role not in _SHOWN_IN and (mark or not isinstance(piece, Text)):
            raise row.bad(
                f"picture in a turn of the {role}",
                f"{mark[0] if mark else 'A picture or video'} stands in a turn of the {role}.",
                "Pictures are shown in questions: move it there, or delete it.",
            )
        if piece is None:
            parts.append(Image)
        elif mark:
            parts += _pieces(text if role == DOCUMENT else _without_layout(text))
        else:
            parts.append(piece)
    return parts


def _without_layout(text: str) -> str:
    """A text without what the chat template writes around pictures itself."""
    labels = [int(number) for number in _LABELLED.findall(text)]
    if len(labels) > 1 and labels == list(range(1, text.count("<image>") + 1)):
        text = _LABELLED.sub("<image>", text)
    return re.sub(r"(<image>|<video>)\n", r"\1", text)


def _pieces(text: str) -> list[Any]:
    pieces = _MARK.split(text)
    parts: list[Any] = [Text(pieces[0])] if pieces[0] else []
    for kind, behind in zip(pieces[1::2], pieces[2::2], strict=True):
        parts.append(Image if kind == "image" else Video)
        parts += [Text(behind)] if behind else []
    return parts
