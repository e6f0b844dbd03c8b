"""Documents that fill four to six tiles: sections with fields of the same names, and tables of many rows."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from cascadevl.core.task import Sample
from cascadevl.gym import assets
from cascadevl.gym.assets import Split
from cascadevl.gym.charts import COLUMNS
from cascadevl.gym.family import Asked, Drawn, Family, Phrasings
from cascadevl.gym.page import Page, palette
from cascadevl.gym.text import MIN_HEIGHT, amount, code, date
from cascadevl.scoring.text import exact

PHRASINGS = {
    "field": Phrasings(
        trained=(
            "What is the {noun} under {section}?", "Which {noun} is under {section}?", "Read the {noun} of {section}.",
            "What is the {noun} in the section {section}?", "Under {section}, what is the {noun}?",
            "What {noun} does the section {section} have?", "Find the {noun} under {section}.",
            "What does it say for the {noun} under {section}?", "In {section}, which {noun} is given?",
            "Give the {noun} of the section {section}.",
        ),
        held_out=("Tell me the {noun} under {section}.", "Look up the {noun} in the section {section}."),
    ),
    "cell": Phrasings(
        trained=(
            "What is the {column} in the row {label}?", "Which {column} is in the row {label}?",
            "Read the {column} in row {label}.", "What stands under {column} in the row {label}?",
            "In the row {label}, what is the {column}?", "In row {label}, which {column} is given?",
            "What is in the row {label} under {column}?", "Find the {column} in the row {label}.",
            "Give the {column} in row {label}.", "What {column} does the row {label} have?",
        ),
        held_out=("Tell me the {column} in the row {label}.", "Look up the {column} in row {label}."),
    ),
    "row": Phrasings(
        trained=(
            "Which row has the {column} {value}?", "In which row is the {column} {value}?",
            "Whose {column} is {value}?", "Find the row whose {column} is {value}.", "Which row says {value}?",
            "Which row has {value} under {column}?", "What is the row with the {column} {value}?",
            "Which one has a {column} of {value}?", "Name the row with {value} under {column}.",
            "In which row does it say {value} under {column}?",
        ),
        held_out=("Tell me which row has the {column} {value}.", "Look for the row with the {column} {value}."),
    ),
    "rows": Phrasings(
        trained=(
            "How many rows does the table have?", "How many rows are there?", "Count the rows of the table.",
            "What is the number of rows?", "How many rows do you see?", "How many rows are in the table?",
            "How many rows are below the header?", "Count the rows below the header.",
            "What is the number of rows in the table?", "The table has how many rows?",
        ),
        held_out=("Tell me how many rows the table has.", "The number of rows is?"),
    ),
}  # fmt: skip

GRIDS = ((2, 2), (2, 3), (2, 3), (3, 2))
SECTIONS = (
    "Bill to", "Ship to", "Sender", "Receiver", "Contact", "Buyer", "Seller", "Owner", "Tenant", "Office",
    "Arrival", "Departure", "Morning", "Evening", "Home", "Work",
)  # fmt: skip
FIELDS: Mapping[str, tuple[str, Callable[[random.Random, Split], str]]] = {
    "Name": ("name", assets.person),
    "Phone": ("phone number", lambda rng, split: f"{rng.randint(100, 999)}-{rng.randint(1000, 9999)}"),
    "Date": ("date", lambda rng, split: date(rng)),
    "Amount": ("amount", lambda rng, split: amount(rng)),
    "No.": ("number", lambda rng, split: code(rng)),
    "Shop": ("shop", assets.shop),
}
MARGIN, STEP = 6.0, 1.45


@dataclass(frozen=True, kw_only=True, slots=True)
class Reports(Family):
    """A field is found by its section, a cell by its row and column."""

    name: ClassVar[str] = "reports"
    phrasings: ClassVar[Mapping[str, Phrasings]] = PHRASINGS

    def drawn(self, rng: random.Random) -> Drawn:
        face = rng.choice(assets.faces(self.split))
        colours = palette(rng, plain=rng.random() < 0.6)
        draw = rng.choice((_sections, _table))
        while True:
            page = Page.blank(rng, rng.choice(GRIDS), colours, plain=rng.random() < 0.7)
            height = rng.uniform(MIN_HEIGHT, 18)
            asked, words = draw(rng, page, face, height, self.split)
            if asked:
                break
        rng.shuffle(asked)
        facts = {"font": face, "words": words}
        return Drawn(image=page.worn(rng), asked=asked[0], more=asked[1:], glyphs=page.glyphs, facts=facts)

    def score(self, sample: Sample, answer: str) -> float:
        """1.0 for the same text; the case of a row's name does not count."""
        return float(exact(answer, sample.answer, fold_case=sample.facts["kind"] in ("row", "rows")))


Made = tuple[list[Asked], tuple[str, ...]]
NOTHING: Made = ([], ())


def _sections(rng: random.Random, page: Page, face: str, height: float, split: Split) -> Made:
    """Two to four headings, each with the same two to four labels and values of its own."""
    titles, labels = rng.sample(SECTIONS, rng.randint(2, 4)), rng.sample(list(FIELDS), rng.randint(2, 4))
    values = [[FIELDS[label][1](rng, split) for label in labels] for _ in titles]
    beside = page.width > 300 and len(titles) == 2
    width = (page.width - 2 * MARGIN) / (2 if beside else 1)
    column = max(page.text_width(f"{label}:", face, height) for label in labels) + 0.8 * height
    widest = column + max(page.text_width(value, face, height) for row in values for value in row)
    num_lines = (1 if beside else len(titles)) * (len(labels) + 1.4)
    if widest > width - 4 or num_lines * STEP * height > page.height - 2 * MARGIN:
        return NOTHING
    asked, ruled, top = [], rng.random() < 0.5, MARGIN
    for number, (title, row) in enumerate(zip(titles, values, strict=True)):
        left = MARGIN + (width if beside and number else 0.0)
        top = MARGIN if beside else top
        page.text(left, top, title, face=face, height=height, colour=page.palette.accent if ruled else None)
        if ruled:
            page.line([(left, top + 1.2 * height), (left + width - 6, top + 1.2 * height)], colour=page.palette.accent)
        top += STEP * height
        for label, value in zip(labels, row, strict=True):
            page.text(left, top, f"{label}:", face=face, height=height)
            page.text(left + column, top, value, face=face, height=height)
            asked.append(Asked("field", value, {"noun": FIELDS[label][0], "section": title}))
            top += STEP * height
        top += 0.4 * STEP * height
    return asked, tuple(word for row in values for value in row for word in value.split())


def _table(rng: random.Random, page: Page, face: str, height: float, split: Split) -> Made:
    """Six to twelve rows, two to four columns of numbers."""
    columns = rng.sample(COLUMNS, rng.randint(2, 4))
    names = assets.words(split, rng.choice(("products", "first_names")))
    labels = rng.sample(names, min(len(names), rng.randint(6, 12)))
    rows = [[str(rng.randint(1, 10 ** rng.randint(1, 4))) for _ in columns] for _ in labels]
    printed = [["", *columns], *([label, *row] for label, row in zip(labels, rows, strict=True))]
    widths = [max(page.text_width(row[n], face, height) for row in printed) + 8 for n in range(len(columns) + 1)]
    spare = page.width - 2 * MARGIN - sum(widths)
    if spare < 0 or STEP * height * len(printed) > page.height - 2 * MARGIN:
        return NOTHING
    ruled, apart = rng.random() < 0.5, rng.choice((0.0, spare / len(widths)))
    for number, row in enumerate(printed):
        top, left = MARGIN + number * STEP * height, MARGIN
        for n, text in enumerate(row):
            page.text(left + (0 if n == 0 else widths[n] - 4), top, text, face=face, height=height, align=float(n > 0))
            left += widths[n] + apart
        if number == 0 or ruled:
            rule = top + 1.22 * height
            page.line([(MARGIN, rule), (left - apart, rule)], colour=page.palette.accent)
    asked = []
    for label, row in zip(labels, rows, strict=True):
        for n, (column, value) in enumerate(zip(columns, row, strict=True)):
            asked.append(Asked("cell", value, {"column": column.lower(), "label": label}))
            if sum(value in other for other in rows) == 1 and [other[n] for other in rows].count(value) == 1:
                asked.append(Asked("row", label, {"column": column.lower(), "value": value}))
    return [*rng.sample(asked, 5), Asked("rows", str(len(labels)))], tuple(labels)
