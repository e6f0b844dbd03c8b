"""Pieces such as `▁cat` and `<0xE6>` become text one at a time: of SentencePiece, and of what was converted from it."""

from typing import Protocol

SPACE = "▁"
REPLACEMENT = "\ufffd"


class Pieces(Protocol):
    """A vocabulary of pieces."""

    added: dict[int, str]
    """Tokens laid over the vocabulary or behind it, written as they are."""
    drops_first: bool
    """Whether a ▁ that begins an answer is not part of its text."""
    drops_each: bool
    """Whether this holds for each stretch between added tokens."""

    def piece(self, token_id: int) -> str: ...

    def byte(self, token_id: int) -> int | None:
        """The byte that a piece such as `<0xE6>` stands for."""
        ...


class PieceStream:
    """Text as SentencePiece decodes it: ▁ is a space, a byte that belongs to no character is �.

    The tokenizers library replaces whole runs of bytes if one of them is wrong, which nobody can know
    while they come; its stream raises at such runs.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._waiting = b""
        self._drop = pieces.drops_first

    def push(self, token_id: int) -> str:
        byte = self._pieces.byte(token_id)
        if byte is not None:
            self._drop = False
            self._waiting += bytes([byte])
            return self._characters(ended=False)
        rest = self.finish()
        if token_id in self._pieces.added:
            self._drop = self._pieces.drops_each
            return rest + self._pieces.added[token_id]
        piece = self._pieces.piece(token_id)
        text = piece.removeprefix(SPACE) if self._drop else piece
        self._drop = self._drop and not piece
        return rest + text.replace(SPACE, " ")

    def finish(self) -> str:
        return self._characters(ended=True)

    def _characters(self, ended: bool) -> str:
        """Whole characters off the waiting bytes; a byte that begins none is replaced."""
        text = ""
        while self._waiting:
            length = _character_bytes(self._waiting[0])
            if len(self._waiting) < length and not ended:
                break
            try:
                text += self._waiting[:length].decode("utf-8")
            except UnicodeDecodeError:
                text, length = text + REPLACEMENT, 1
            self._waiting = self._waiting[length:]
        return text


def _character_bytes(first: int) -> int:
    """How many bytes the UTF-8 character has that begins so."""
    return 2 if 0xC2 <= first < 0xE0 else 3 if 0xE0 <= first < 0xF0 else 4 if 0xF0 <= first < 0xF5 else 1
