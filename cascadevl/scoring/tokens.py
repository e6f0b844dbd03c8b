"""A reading of a page as tokens and the gaps between them: what readers agree on, and what only looks different.

Readers differ in white space, in Markdown or HTML, in the shape of quotes. None of that is said by the page, so it
goes into gaps and is not compared; what is left are words, numbers and marks. A token is compared by its `key` and
printed as it stands, so that a reading can be put together again to the last character.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["word", "number", "mark"]


@dataclass(frozen=True, slots=True)
class Token:
    """A run of characters of one reading; `gap` is what stands between it and the token before."""

    text: str
    key: str
    """The text by the rules of `SPELLINGS`: equal keys are agreement."""
    gap: str
    kind: Kind
    start: int
    """Where the text begins in the reading."""

    @property
    def end(self) -> int:
        return self.start + len(self.text)


GAPS = {
    "white space": r"\s+",
    "invisible characters": "[\u00ad\u200b-\u200f\u2060\ufeff]+",
    "html tags": r"</?[A-Za-z][^<>\n]{0,200}>",
    "code fences": r"(?m:^[ \t]*```\w*[ \t]*$)",
    "headings, quotes, bullets": r"(?m:^[ \t]*(?:#{1,6}|>|[-*+•·])(?=[ \t]))",
    "rules": r"(?m:^[ \t]*(?:-{3,}|={3,}|_{3,}|\*{3,})[ \t]*$)",
    "table borders": r"(?m:^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)+\|?[ \t]*$)|\|",
    "emphasis": r"\*{2,3}|__|`|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)",
}
"""Rule -> what it takes to be no part of the text."""

_GAP = re.compile("|".join(f"(?:{rule})" for rule in GAPS.values()))
_RUN = re.compile(
    "(?P<ideograph>[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])"  # written without spaces
    "|(?P<mark>[—…])"
    "|(?P<run>[^\\s—…\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+)"
)
_OPENING, _CLOSING = "([{\"'“‘«„¿¡", ".,;:!?)]}\"'”’»"

SPELLINGS = str.maketrans(
    {"‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "`": "'", "´": "'"}
    | {"−": "-", "‐": "-", "‑": "-", "–": "-", "—": "-", "…": "..."}
    | {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl"}
)
"""Quotes, dashes and ligatures that readers choose freely; letters are compared in NFC, with their case."""


def spell(text: str) -> str:
    if text.isascii():  # most of a page, and twenty times faster
        return text.replace("`", "'")
    return unicodedata.normalize("NFC", text).translate(SPELLINGS)


def tokenise(reading: str) -> tuple[list[Token], str]:
    """The tokens of a reading, and the gap behind the last: gaps and texts joined give the reading again."""
    tokens: list[Token] = []
    done = 0
    for start, text in _texts(reading):
        tokens.append(Token(text, spell(text), reading[done:start], _kind(text), start))
        done = start + len(text)
    return tokens, reading[done:]


_NEW_LINE = re.compile(r"\n|</?(?:br|p|div|tr|li|ul|ol|table|h[1-6])\b", re.IGNORECASE)
_SPACE = re.compile(r"\s|\||</?t[dh]\b", re.IGNORECASE)


def apart(gap: str) -> str:
    """What a gap comes to: a line break, a space, or nothing, as between a word and its comma."""
    if gap in ("", " "):
        return gap
    return "\n" if _NEW_LINE.search(gap) else " " if _SPACE.search(gap) else ""


def plain(reading: str) -> str:
    """The reading by the rules of this file: no markup, lines kept, at most one space between tokens."""
    tokens = tokenise(reading)[0]
    return "".join((apart(token.gap) if at else "") + token.key for at, token in enumerate(tokens))


def _texts(reading: str) -> Iterator[tuple[int, str]]:
    done = 0
    for gap in [*_GAP.finditer(reading), None]:
        for match in _RUN.finditer(reading, done, gap.start() if gap else len(reading)):
            yield from _peeled(match.start(), match[0]) if match["run"] else [(match.start(), match[0])]
        done = gap.end() if gap else done


def _peeled(start: int, run: str) -> Iterator[tuple[int, str]]:
    """A run of characters without the marks around it: `(INV-7),` is four tokens, `$1,284.50` one."""
    first, last = 0, len(run)
    while first < last and run[first] in _OPENING:
        first += 1
    while last > first and run[last - 1] in _CLOSING:
        last -= 1
    yield from ((start + at, run[at]) for at in range(first))
    if first < last:
        yield start + first, run[first:last]
    yield from ((start + at, run[at]) for at in range(last, len(run)))


def _kind(text: str) -> Kind:
    """Whatever holds a digit is a number: amounts, dates and codes, also misread ones such as `$l,284.50`."""
    if text.isalpha():
        return "word"
    if any(char.isdigit() for char in text):
        return "number"
    return "word" if any(char.isalpha() for char in text) else "mark"
