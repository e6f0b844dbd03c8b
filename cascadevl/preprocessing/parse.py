"""Text of an answer -> what was thought and what is meant for the reader.

InternVL3.5 writes its thinking as `<think>…</think>`. GPT-OSS says it in a message of its own, on
another channel (OpenAI's harmony format). Answers are decoded to the first form whichever model
spoke, so that one reader serves all and a kept history goes back in as it came out.
"""

import re

THINK_START, THINK_END = "<think>", "</think>"

CHANNEL, MESSAGE = "<|channel|>", "<|message|>"
"""Control tokens of harmony: a header stands between them, a text behind the second."""

_OPENINGS = ("<|start|>", CHANNEL)
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
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
