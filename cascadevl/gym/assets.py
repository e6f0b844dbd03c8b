"""What pictures are printed with: fonts and words, each in a train and a test part without overlap.

Fonts lie in `fonts/train` and `fonts/test`. Words, names and made-up words are divided by a hash
of their lower-case letters, so that "River", "river" and the shop "River" fall on the same side.
"""

import random
import zlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

from PIL import ImageFont

Split = Literal["train", "test"]
Words = Literal["english", "first_names", "surnames", "products", "shop_names", "shop_kinds"]

FOLDER = Path(__file__).parent
HELD_OUT_ONE_IN = 10


def held_out(word: str) -> bool:
    """Whether a word is printed in test pictures only."""
    return zlib.crc32(f"gym {word.lower()}".encode()) % HELD_OUT_ONE_IN == 0


@cache
def words(split: Split, kind: Words = "english") -> tuple[str, ...]:
    """The words of one list that belong to this split."""
    listed = (FOLDER / "words" / f"{kind}.txt").read_text("utf-8").split()
    return tuple(word for word in listed if held_out(word) == (split == "test"))


@cache
def faces(split: Split) -> tuple[str, ...]:
    """The fonts of this split, named `train/gym01`; FONTS.md tells what they were made from."""
    return tuple(sorted(f"{split}/{path.stem}" for path in (FOLDER / "fonts" / split).glob("*.ttf")))


@lru_cache(maxsize=2048)
def font(face: str, em_px: int) -> ImageFont.FreeTypeFont:
    """A font without kerning or ligatures, so that every character is as wide as it is alone."""
    path = FOLDER / "fonts" / f"{face}.ttf"
    return ImageFont.truetype(path, em_px, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1 << 17)
def advance_px(face: str, em_px: int, char: str) -> float:
    return font(face, em_px).getlength(char)


@lru_cache(maxsize=2048)
def ink_rows_px(face: str, em_px: int) -> tuple[int, int]:
    """Top of "H" and bottom of "g", measured down from the drawing position."""
    _, top, _, bottom = font(face, em_px).getbbox("Hg")
    return int(top), int(bottom)


@cache
def heights_per_em(face: str) -> float:
    """Height of "Hg" as a part of the font size."""
    top, bottom = ink_rows_px(face, 200)
    return (bottom - top) / 200


def pseudo_word(rng: random.Random, split: Split) -> str:
    """A pronounceable word that is not in the dictionary, so that a reader cannot guess it."""
    while True:
        num = rng.randint(1, 4)
        syllables = [rng.choice("bcdfghjklmnprstvwxz") + rng.choice("aeiouy") for _ in range(num)]
        word = "".join(syllables) + rng.choice(("", rng.choice("bdfgklmnprstxz")))
        if held_out(word) == (split == "test") and word not in _dictionary():
            return word


def person(rng: random.Random, split: Split) -> str:
    return f"{rng.choice(words(split, 'first_names'))} {rng.choice(words(split, 'surnames'))}"


def shop(rng: random.Random, split: Split) -> str:
    return f"{rng.choice(words(split, 'shop_names'))} {rng.choice(words(split, 'shop_kinds'))}"


@cache
def _dictionary() -> frozenset[str]:
    return frozenset(words("train") + words("test"))
