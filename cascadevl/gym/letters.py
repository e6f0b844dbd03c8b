"""Letters: small pictures full of print, to teach a vision tower its alphabet."""

import random
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from cascadevl.gym import assets
from cascadevl.gym.family import Asked, Drawn, Family
from cascadevl.gym.page import Page, palette
from cascadevl.gym.text import MIN_HEIGHT, PARAGRAPH, line_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Letters(Family):
    """One tile printed from edge to edge; several sizes, one typeface."""

    difficulty: Literal["easy", "full"] = "full"
    """"easy": nearly black on nearly white."""

    name = "letters"
    phrasings = MappingProxyType({"read": PARAGRAPH})

    def drawn(self, rng: random.Random) -> Drawn:
        easy = self.difficulty == "easy"
        face = rng.choice(assets.faces(self.split))
        page = Page.blank(rng, (1, 1), palette(rng, plain=easy), plain=easy or rng.random() < 0.6)
        lines: list[str] = []
        top = rng.uniform(0, 8)
        while True:
            height = rng.triangular(MIN_HEIGHT, 40, 18)
            if top + height + 1 > page.height:  # rounding to pixels may add one
                break
            left = rng.uniform(0, 10)
            line = self._line(rng, page, face, height, page.width - left)
            if line:
                page.text(left, top, line, face=face, height=height)
                lines.append(line)
            top += height * rng.uniform(1.05, 1.4)
        image = page.image if easy else page.worn(rng)
        asked = Asked("read", "\n".join(lines))
        return Drawn(image=image, asked=asked, glyphs=page.glyphs, facts={"font": face})

    def _line(self, rng: random.Random, page: Page, face: str, height: float, room: float) -> str:
        """As much text as fits; the last word may be cut anywhere."""
        line = " ".join(line_text(rng, self.split) for _ in range(2))
        while line and page.text_width(line, face, height) > room:
            line = line[:-1]
        return line.strip()
