"""Text of an answer -> what was thought, what is meant for the reader, which tools are called.

InternVL3.5 writes its thinking as `<think>…</think>`. GPT-OSS says it in a message of its own, on
another channel (OpenAI's harmony format). Answers are decoded to the first form whichever model
spoke, so that one reader serves all and a kept history goes back in as it came out. Calls of tools
stand in tags too, as JSON with "name" and "arguments" (Hermes function calling, Qwen2.5 and later).
"""

import json
import re
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

THINK_START, THINK_END = "<think>", "</think>"
TOOL_CALL_START, TOOL_CALL_END = "<tool_call>", "</tool_call>"

CHANNEL, MESSAGE = "<|channel|>", "<|message|>"
"""Control tokens of harmony: a header stands between them, a text behind the second."""

_OPENINGS = ("<|start|>", CHANNEL)
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_SURROGATES = re.compile("[\ud800-\udfff]")
_MARKS = re.compile("|".join(map(re.escape, (*_OPENINGS, MESSAGE, "<|constrain|>", *_ENDS))))


class ChannelReader:
    """Follows a harmony answer: headers are not shown, thinking stands in `<think>…</think>`.

    A model that never names a channel is taken at its word: what it says is the answer.
    """

    def __init__(self) -> None:
        self._header: str | None = None
        self._in_channel = self._thinking = False

    def text(self, piece: str) -> str:
        """Plain text came: what is shown of it."""
        if self._header is None:
            return piece
        self._header += piece
        return ""

    def mark(self, token: str) -> str:
        """A control token came: what is shown for it."""
        if token == MESSAGE:
            channel = (self._header or "").split()[:1]
            self._header, self._thinking = None, self._in_channel and channel != ["final"]
            return THINK_START if self._thinking else ""
        if token == "<|constrain|>" and self._header is not None:
            self._header += " "
        if token not in _OPENINGS and token not in _ENDS:
            return ""
        shown = THINK_END + "\n" if self._thinking else ""
        self._thinking, self._in_channel = False, token == CHANNEL
        self._header = "" if token in _OPENINGS else None
        return shown


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking, answer) of an answer in either form; the whole is the answer where nothing was thought.

    Thinking that was cut off has no answer yet.
    """
    if MESSAGE in text:
        text = _without_channels(text)
    if THINK_END in text:
        thinking, answer = text.rsplit(THINK_END, 1)
        return thinking.split(THINK_START, 1)[-1].strip(), answer.strip()
    if text.lstrip().startswith(THINK_START):
        return text.split(THINK_START, 1)[1].strip(), ""
    return "", text.strip()


def _without_channels(text: str) -> str:
    """Harmony with its markers written out -> the `<think>` form."""
    reader, shown, at = ChannelReader(), "", 0
    for match in _MARKS.finditer(text):
        shown += reader.text(text[at : match.start()]) + reader.mark(match.group())
        at = match.end()
    return shown + reader.text(text[at:])


class Piece(NamedTuple):
    """A stretch of an answer, or one whole call in it."""

    kind: Literal["thinking", "text", "call"]
    text: str
    """Of a call: its arguments, a JSON object."""
    name: str = ""
    """Of a call: the tool."""


class AnswerReader:
    """Follows an answer as it comes: `push` gives what is certain by now, `finish` the rest.

    What stands in the tags of a call and is none of a known tool is text: nobody could act on it. White space
    around thinking and calls is left out.
    """

    def __init__(self, tools: Collection[str] = ()) -> None:
        """`tools`: names of those that may be called."""
        self._tools = tools
        self._waiting = self._gap = ""
        self._state: Literal["start", "thinking", "text", "call"] = "start"
        self._fresh = False
        """Nothing was shown since the last thought or call."""
        self._thoughts = 0

    def push(self, text: str) -> list[Piece]:
        self._waiting += text
        return self._read(ended=False)

    def finish(self) -> list[Piece]:
        """An answer may be cut off behind the JSON of a call, which is whole then."""
        return self._read(ended=True)

    def _read(self, ended: bool) -> list[Piece]:
        pieces: list[Piece] = []
        steps = {"start": self._start, "thinking": self._thinking, "text": self._text, "call": self._call}
        before = None
        while before != (self._state, self._waiting):
            before = self._state, self._waiting
            pieces += steps[self._state](ended)
        return [piece for piece in pieces if piece.text]

    def _start(self, ended: bool) -> list[Piece]:
        begins = self._waiting.lstrip()
        if begins.startswith(THINK_START):
            self._state, self._waiting, self._fresh = "thinking", begins.removeprefix(THINK_START), True
            self._thoughts += 1
        elif ended or not THINK_START.startswith(begins):
            self._state = "text"
        return []

    def _thinking(self, ended: bool) -> list[Piece]:
        text, found = self._until(THINK_END, ended)
        text = "\n" * (bool(text) and self._thoughts > 1 and self._fresh) + text
        self._fresh = self._fresh and not text
        if found:
            self._state, self._fresh = "start", True
        return [Piece("thinking", text)]

    def _text(self, ended: bool) -> list[Piece]:
        if not self._tools:
            text, self._waiting = self._waiting.lstrip() if self._fresh else self._waiting, ""
            self._fresh = self._fresh and not text
            return [Piece("text", text)]
        text, found = self._until(TOOL_CALL_START, ended=False)
        self._fresh = self._fresh and not text
        if found:
            self._state = "call"
        elif ended:
            text, self._waiting = text + self._waiting, ""
        return [Piece("text", text)]

    def _call(self, ended: bool) -> list[Piece]:
        body, tag, behind = self._waiting.partition(TOOL_CALL_END)
        if not tag and not ended:
            return []
        self._state, self._waiting = "text", behind
        call = _call(body if tag else body[: len(body) - _begun(TOOL_CALL_END, body)])
        if call is None or call.name not in self._tools:
            self._fresh = False
            return [Piece("text", self._gap + TOOL_CALL_START + body + tag)]
        self._fresh = True
        return [call]

    def _until(self, tag: str, ended: bool) -> tuple[str, bool]:
        """Text in front of `tag`, or as much of it as cannot belong to the tag; the white space at its end waits."""
        if self._fresh:
            self._waiting = self._waiting.lstrip()
        text, found, behind = self._waiting.partition(tag)
        if not found and not ended:
            text = text[: len(text) - _begun(tag, text)]
        kept = text.rstrip()
        self._gap = text[len(kept) :]
        self._waiting = behind if found else "" if ended else self._waiting[len(kept) :]
        return kept, bool(found)


def _begun(tag: str, text: str) -> int:
    """Characters at the end of `text` that may be the beginning of `tag`."""
    return max((n for n in range(1, len(tag)) if text.endswith(tag[:n])), default=0)


def _call(body: str) -> Piece | None:
    """None: this is no call."""
    try:
        call: Any = json.loads(body)
        arguments = call.get("arguments", {}) if isinstance(call, dict) else None
        if not isinstance(arguments, dict) or not isinstance(call.get("name"), str):
            return None
        escaped = json.dumps(arguments, allow_nan=False)
        text = json.dumps(arguments, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    # A lone surrogate stays an escape: no reply could hold it.
    return Piece("call", escaped if _SURROGATES.search(text) else text, call["name"])
