"""Reading: one line, or a short paragraph."""

import random
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from cascadevl.core.errors import ConfigError
from cascadevl.core.task import Sample
from cascadevl.gym import assets
from cascadevl.gym.assets import Split
from cascadevl.gym.family import Asked, Drawn, Family, Phrasings
from cascadevl.gym.page import GRIDS, MAX_TILES, Page, palette
from cascadevl.scoring.text import character_error_rate

LINE = Phrasings(
    trained=(
        "Read the text.", "What does it say?", "What is written here?", "What text is shown?",
        "Transcribe the text.", "Read this.", "What does the image say?", "What is the text?",
        "Please read the text in the image.", "Write down the text you see.",
        "Which words are in the picture?", "What words do you see?", "Which text does the image show?",
        "Which words stand here?", "Say what is written.", "Tell me what it says.", "Tell me the text.",
        "Copy the text.", "Copy what you see exactly.", "Show me the text as words.",
    ),
    held_out=("Which words does the picture show?", "Tell me what is written.", "Copy the text exactly."),
)  # fmt: skip
PARAGRAPH = Phrasings(
    trained=(
        "Read the text.", "Read all lines.", "Transcribe the page.", "What is written here?",
        "What does it say?", "Read the paragraph.", "Transcribe all the text.", "What text is shown?",
        "Please read the text in the image.", "Write down every line.",
        "Tell me all the text.", "Tell me what is written on the lines.", "Copy the text.", "Copy all the lines.",
        "Give me the text.", "Give me all lines of the text.",
    ),
    held_out=("Tell me everything that is written.", "Copy the text line by line.", "Give me the full text."),
)  # fmt: skip

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

MIN_HEIGHT, MAX_HEIGHT = 14.0, 40.0
"""Height of a printed line in page units, from the top of "H" to the bottom of "g"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line(Family):
    """One clear line: words, amounts, dates, codes, or letters that nobody could guess."""

    max_tiles: int = MAX_TILES
    """Pictures are shaped to be cut into at most so many tiles."""
    difficulty: Literal["easy", "full"] = "full"
    """"easy": one or two words or an amount, two tiles, nearly black on nearly white."""

    name: ClassVar[str] = "line"
    phrasings: ClassVar[Mapping[str, Phrasings]] = {"read": LINE}

    def __post_init__(self) -> None:
        _check_tiles(self.max_tiles)

    def drawn(self, rng: random.Random) -> Drawn:
        easy = self.difficulty == "easy"
        text = _easy_text(rng, self.split) if easy else line_text(rng, self.split)
        face = rng.choice(assets.faces(self.split))
        colours = palette(rng, plain=easy)
        grids = _grids(min(self.max_tiles, 2) if easy else self.max_tiles)
        while True:
            page = Page.blank(rng, rng.choices(*grids)[0], colours, plain=easy or rng.random() < 0.6)
            margin = rng.choice((3.0, rng.uniform(3, 12), rng.uniform(8, 24)))
            height = _fitting_height(rng, page, text, face, margin)
            if height:
                break
            text = text.rsplit(" ", 1)[0] if " " in text and rng.random() < 0.5 else text
            if rng.random() < 0.1:
                text = rng.choice(assets.words(self.split))
        _place(rng, page, text, face, height, margin)
        image = page.image if easy else page.worn(rng)
        facts = {"font": face, "words": tuple(text.split())}
        return Drawn(image=image, asked=Asked("read", text), glyphs=page.glyphs, facts=facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Paragraph(Family):
    """Two to five lines; the answer keeps the line breaks."""

    max_tiles: int = MAX_TILES
    """Pictures are shaped to be cut into at most so many tiles."""

    name: ClassVar[str] = "paragraph"
    phrasings: ClassVar[Mapping[str, Phrasings]] = {"read": PARAGRAPH}

    def __post_init__(self) -> None:
        _check_tiles(self.max_tiles)

    def drawn(self, rng: random.Random) -> Drawn:
        face = rng.choice(assets.faces(self.split))
        colours = palette(rng)
        shapes = [(2, 2), (3, 2), (2, 1), (3, 1), (2, 3), (1, 2), (1, 1)]
        grids = [grid for grid in shapes if grid[0] * grid[1] <= self.max_tiles]
        while True:
            page = Page.blank(rng, rng.choice(grids), colours, plain=rng.random() < 0.6)
            margin = rng.uniform(4, 16)
            height = rng.triangular(MIN_HEIGHT, 28, 17)
            step = height * rng.uniform(1.15, 1.7)
            num_lines = min(rng.randint(2, 5), int((page.height - 2 * margin - height) / step) + 1)
            lines = self._lines(rng, page, face, height, page.width - 2 * margin, num_lines)
            if len(lines) > 1:
                break
        align = rng.choice((0.0, 0.0, 0.0, 0.5))
        left = margin if align == 0.0 else page.width / 2
        spare = page.height - 2 * margin - height - (len(lines) - 1) * step
        top = margin + max(0.0, spare) * rng.choice((0.0, 0.5, rng.random()))
        for number, line in enumerate(lines):
            page.text(left, top + number * step, line, face=face, height=height, align=align)
        facts = {"font": face, "words": tuple(" ".join(lines).split())}
        return Drawn(image=page.worn(rng), asked=Asked("read", "\n".join(lines)), glyphs=page.glyphs, facts=facts)

    def score(self, sample: Sample, answer: str) -> float:
        """The share of characters that are right, 1 - CER: one wrong letter does not make a page worthless."""
        return max(0.0, 1.0 - character_error_rate(answer.strip(), sample.answer))

    def _lines(
        self, rng: random.Random, page: Page, face: str, height: float, width: float, num_lines: int
    ) -> list[str]:
        """Running text broken where the next word would not fit, or lines that each stand alone."""
        if rng.random() < 0.3:
            wanted = (line_text(rng, self.split) for _ in range(num_lines))
            return [line for line in wanted if page.text_width(line, face, height) <= width]
        lines, left = [""], rng.randint(2 * num_lines, 5 * num_lines)
        style = rng.choice((str.lower, str.lower, str.upper, str.title))
        while left:
            left -= 1
            word = style(rng.choice(assets.words(self.split)))
            longer = f"{lines[-1]} {word}".strip()
            if page.text_width(longer, face, height) <= width:
                lines[-1] = longer
            elif len(lines) < num_lines and lines[-1] and page.text_width(word, face, height) <= width:
                lines.append(word)
            else:
                break
        if rng.random() < 0.5:
            lines[0] = lines[0][:1].upper() + lines[0][1:]
        return [line for line in lines if line]


def amount(rng: random.Random) -> str:
    """Money, or a plain number."""
    sign = rng.choice(("$", "$", "$", "€", "£", ""))
    value = 10 ** rng.uniform(0, 4.5)
    return f"{sign}{value:,.2f}" if rng.random() < 0.85 else f"{sign}{value:,.0f}"


def date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1990, 2035)
    named = MONTHS[month - 1]
    return rng.choice((
        f"{year}-{month:02}-{day:02}", f"{day:02}/{month:02}/{year}", f"{day:02}.{month:02}.{year}",
        f"{day} {named} {year}", f"{named[:3]} {day}, {year}", f"{month}/{day}/{year % 100:02}",
    ))  # fmt: skip


def code(rng: random.Random) -> str:
    """Order numbers and the like: NV-20391, A4827, 88-1204; without I and O, as real ones are."""
    letters = "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=rng.randint(1, 3)))
    digits = "".join(rng.choices(string.digits, k=rng.randint(3, 6)))
    both = f"{letters}-{digits}", f"{letters}{digits}"
    return rng.choice((*both, f"#{digits}", f"{digits[:2]}-{digits}", digits))


def _time(rng: random.Random) -> str:
    hour, minute = rng.randint(0, 23), rng.randint(0, 59)
    half = rng.choice(("am", "pm", "AM", "PM"))
    return rng.choice((f"{hour:02}:{minute:02}", f"{hour % 12 + 1}:{minute:02} {half}"))


def _phone(rng: random.Random) -> str:
    area, first, last = ("".join(rng.choices(string.digits, k=num)) for num in (3, 3, 4))
    return rng.choice((f"{first}-{last}", f"({area}) {first}-{last}", f"+{area} {first} {last}"))


def _random_characters(rng: random.Random) -> str:
    """Nothing to guess from; without the letters that many fonts draw alike."""
    letters = "".join(sorted(set(string.ascii_letters) - set("IlO")))
    pool = rng.choice((letters, letters + string.digits, letters + string.digits + _MARKS, string.digits))
    return "".join(rng.choices(pool, k=rng.randint(2, 8)))


_MARKS = "!#$%&()*+,-./:;<=>?@[]_{}€£°"


def _cased(rng: random.Random, text: str) -> str:
    return rng.choice((str.lower, str.lower, str.capitalize, str.title, str.upper))(text)


def _some_words(rng: random.Random, split: Split, num: int) -> str:
    return _cased(rng, " ".join(rng.choices(assets.words(split), k=num)))


def _easy_text(rng: random.Random, split: Split) -> str:
    if rng.random() < 0.25:
        return amount(rng)
    return _some_words(rng, split, rng.choice((1, 1, 1, 2)))


def line_text(rng: random.Random, split: Split) -> str:
    """What a line may say; the weights are per cent."""
    kinds = {
        "words": 42, "marked": 8, "amount": 10, "labelled": 5, "date": 6, "time": 3, "code": 6, "phone": 3,
        "name": 5, "pseudo": 6, "characters": 6,
    }  # fmt: skip
    match rng.choices(list(kinds), list(kinds.values()))[0]:
        case "words":
            return _some_words(rng, split, rng.choices((1, 2, 3, 4), (35, 35, 20, 10))[0])
        case "marked":
            return _some_words(rng, split, rng.randint(1, 3)).capitalize() + rng.choice(".!?:,")
        case "amount":
            return amount(rng)
        case "labelled":
            word = rng.choice(assets.words(split)).capitalize()
            return f"{word}{rng.choice((':', ''))} {rng.choice((amount(rng), str(rng.randint(1, 999))))}"
        case "date":
            return date(rng)
        case "time":
            return _time(rng)
        case "code":
            return code(rng)
        case "phone":
            return _phone(rng)
        case "name":
            return rng.choice((assets.person, assets.shop))(rng, split)
        case "pseudo":
            return _cased(rng, " ".join(assets.pseudo_word(rng, split) for _ in range(rng.randint(1, 2))))
        case _:
            return _random_characters(rng)


def _grids(max_tiles: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Shapes and how often they are drawn: the wide and the square ones that people make most."""
    weights = {
        (2, 1): 24, (3, 1): 16, (4, 1): 16, (5, 1): 6, (6, 1): 6,
        (2, 2): 14, (3, 2): 12, (2, 3): 3, (1, 1): 8, (1, 2): 3,
    }  # fmt: skip
    allowed = [grid for grid in GRIDS if grid in weights and grid[0] * grid[1] <= max_tiles]
    return allowed, [weights[grid] for grid in allowed]


def _fitting_height(rng: random.Random, page: Page, text: str, face: str, margin: float) -> float | None:
    """A letter height at which the text fits between the margins, or None."""
    room = page.width - 2 * margin
    most = min(MAX_HEIGHT, page.height - 2 * margin, 20 * room / page.text_width(text, face, 20))
    while most >= MIN_HEIGHT and page.text_width(text, face, most) > room:
        most -= 0.5
    if most < MIN_HEIGHT:
        return None
    return rng.choice((most, rng.uniform(MIN_HEIGHT, most), rng.uniform(MIN_HEIGHT, min(most, 26.0))))


def _place(rng: random.Random, page: Page, text: str, face: str, height: float, margin: float) -> None:
    """Centred, at the top left, at the left, or anywhere; some stand on a coloured panel."""
    width = page.text_width(text, face, height)
    # Rounding to picture pixels may make the line a little higher than asked for.
    across, down = page.width - 2 * margin - width, max(0.0, page.height - 2 * margin - height - 1.0)
    x, y = rng.choice(((0.5, 0.5), (0.5, 0.5), (0.0, 0.0), (0.0, 0.5), (rng.random(), rng.random())))
    left, top = margin + across * x, margin + down * y
    if rng.random() < 0.08:
        page.box(left - 3, top - 3, left + width + 3, top + height + 4, outline=page.palette.accent)
    page.text(left, top, text, face=face, height=height)


def _check_tiles(max_tiles: int) -> None:
    if not 1 <= max_tiles <= MAX_TILES:
        raise ConfigError(f"max_tiles is {max_tiles}: pictures of the gym have 1 to {MAX_TILES} tiles.")
