"""Made-up data sets, for tests of what becomes of them."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from cascadevl.core.errors import DataError
from cascadevl.core.messages import Conversation, Text, Turn
from cascadevl.core.messages import Image as Picture
from cascadevl.data.sources import Example


class Talks:
    """A source of conversations made when they are asked for; None is a row that cannot be read."""

    def __init__(self, name: str, size: int, talk: Callable[[int], Conversation | None]) -> None:
        self.name, self._size, self._talk = name, size, talk

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        talk = self._talk(index)
        if talk is None:
            raise DataError(f"{self.name}:{index + 1}", "is not JSON.", "Mend it.", "not JSON")
        return Example(talk, f"{self.name}:{index + 1}")


def answered(question: str, answer: str, pictures: Sequence[bytes] = ()) -> Conversation:
    asked = Turn("user", (*map(Picture, pictures), Text(question)))
    return Conversation((asked, Turn("assistant", (Text(answer),))))


def photo(number: int, width: int = 60, height: int = 60) -> bytes:
    """A PNG of noise, which JPEG cannot keep as it is."""
    pixels = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def mixed(name: str, size: int) -> Talks:
    """Answers of odd lengths; a third without picture, a third with one, a third with two."""

    def talk(row: int) -> Conversation:
        pictures = [photo(10 * row + i, 50 + row % 90, 130 - row % 70) for i in range(row % 3)]
        return answered(f"What is {row}?", "word " * (1 + row * 7 % 23) + str(row), pictures)

    return Talks(name, size, talk)


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
