"""Bar charts, line charts and small tables, and a question about one value."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cascadevl.core.task import Sample
from cascadevl.gym import assets
from cascadevl.gym.assets import Split
from cascadevl.gym.family import Asked, Drawn, Family, Phrasings
from cascadevl.gym.page import Colour, Page, Palette, accents, palette
from cascadevl.gym.text import MIN_HEIGHT
from cascadevl.scoring.text import exact

PHRASINGS = {
    "value": Phrasings(
        trained=(
            "What is the value of {label}?", "How much is {label}?", "What value does {label} have?",
            "What is the value for {label}?", "Which value has {label}?", "Read the value of {label}.",
            "How high is {label}?", "What number belongs to {label}?",
            "Which number stands for {label}?", "What does the chart give for {label}?",
            "Tell me how much {label} has.", "What number does the chart show for {label}?", "Look up {label}.",
            "Give the number for {label}.", "Tell me what value {label} has.",
        ),
        held_out=("Tell me the value of {label}.", "Which number does the chart give for {label}?"),
    ),
    "largest": Phrasings(
        trained=(
            "Which category is the largest?", "What is the largest category?",
            "Which one has the highest value?", "Which label has the largest value?",
            "Which category has the most?", "Which is the biggest?", "What has the highest value?",
            "Which category is highest?",
            "Which category has the maximum value?", "Which entry is the maximum?", "Which entry is on top by value?",
            "Tell me the largest category.", "Which one comes out highest?", "What comes first by value?",
            "Tell me which entry is the biggest.",
        ),
        held_out=("Tell me the category with the maximum.", "Which entry comes out on top?"),
    ),
    "smallest": Phrasings(
        trained=(
            "Which category is the smallest?", "What is the smallest category?",
            "Which one has the lowest value?", "Which label has the smallest value?",
            "Which category has the least?", "Which is the smallest?", "What has the lowest value?",
            "Which category is lowest?",
            "Which category has the minimum value?", "Which entry is the minimum?", "Which entry is lowest by value?",
            "Tell me the smallest category.", "Which one comes last?", "What comes last in value?",
            "Tell me which entry is the smallest.",
        ),
        held_out=("Tell me the category with the minimum.", "Which entry comes last by value?"),
    ),
    "count": Phrasings(
        trained=(
            "How many {things} are there?", "How many {things} does the chart have?", "Count the {things}.",
            "What is the number of {things}?", "How many {things} do you see?", "How many {things}?",
            "How many {things} are shown?", "How many {things} are in the chart?",
            "Tell me how many {things} there are.", "Tell me the number of {things}.",
            "Say how many {things} it shows.", "What number of {things} does the chart show?",
        ),
        held_out=("Tell me how many {things} the chart shows.", "The number of {things} is?"),
    ),
    "cell": Phrasings(
        trained=(
            "What is the {column} of {label}?", "What is the {column} for {label}?",
            "Which {column} has {label}?", "Read the {column} of {label}.",
            "What {column} does {label} have?", "What is {label}'s {column}?",
            "What is in column {column} for {label}?", "Give the {column} of {label}.",
            "Tell me what {column} {label} has.", "Look for the {column} of {label}.", "Find the {column} for {label}.",
            "Look up what {column} {label} has.", "Tell me {label}'s {column}.",
        ),
        held_out=("Tell me the {column} of {label}.", "Look up the {column} for {label}."),
    ),
}  # fmt: skip

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
COLUMNS = (
    "Price",
    "Qty",
    "Size",
    "Score",
    "Age",
    "Cost",
    "Sales",
    "Year",
    "Points",
    "Stock",
    "Rate",
    "Weight",
)
STEPS = (1, 2, 4, 5, 10, 20, 25, 50, 100)
"""Distances of labelled lines behind bars."""
MARGIN = 6.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Charts(Family):
    """Values, extremes and counts of charts; cells of tables."""

    name: ClassVar[str] = "charts"
    phrasings: ClassVar[Mapping[str, Phrasings]] = PHRASINGS

    def drawn(self, rng: random.Random) -> Drawn:
        face = rng.choice(assets.faces(self.split))
        colours = palette(rng, plain=rng.random() < 0.6)
        draw = rng.choice((_columns, _columns, _bars, _points, _table))
        drawn = None
        while drawn is None:
            drawn = draw(rng, face, colours, self.split)
        return drawn

    def score(self, sample: Sample, answer: str) -> float:
        """1.0 for the same label or number, whatever its case."""
        return float(exact(answer, sample.answer, fold_case=True))


def _columns(rng: random.Random, face: str, colours: Palette, split: Split) -> Drawn | None:
    """Upright bars. Values stand on top of them; where they do not, they lie on labelled lines."""
    labels, values = _data(rng, split)
    page = _page(rng, colours, [(3, 2), (2, 2), (3, 2), (2, 1), (2, 3)])
    height = rng.uniform(MIN_HEIGHT, 17)
    axis = rng.random() < 0.15
    step = next(step for step in STEPS if max(values) <= 5 * step)
    if axis:
        values = [step * max(1, round(value / step)) for value in values]
    left = MARGIN + (page.text_width(str(max(values) + step), face, height) + 5 if axis else 0.0)
    slot = (page.width - left - MARGIN) / len(values)
    base, top = page.height - MARGIN - height * 1.3, MARGIN + height * 1.6
    unit = (base - top) / max(values)
    crowded = base - top < 45 or (axis and unit * step < 1.2 * height)
    if crowded or len(set(values)) < len(values) or not _fits(page, labels, values, face, height, slot):
        return None
    for level in range(0, max(values) + 1, step) if axis else ():
        y = base - level * unit
        page.line([(left, y), (page.width - MARGIN, y)], colour=page.palette.accent)
        page.text(left - 4, y - height / 2, str(level), face=face, height=height, align=1.0)
    fills = _fills(rng, page, len(values))
    thick = slot * rng.uniform(0.45, 0.8)
    for number, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle = left + slot * (number + 0.5)
        page.box(middle - thick / 2, base - value * unit, middle + thick / 2, base, fill=fills[number])
        page.text(middle, base + height * 0.25, label, face=face, height=height, align=0.5)
        if not axis:
            y = base - value * unit - height * 1.2
            page.text(middle, y, str(value), face=face, height=height, align=0.5)
    page.line([(left, base), (page.width - MARGIN, base)], colour=page.palette.ink)
    return _asked(rng, page, face, labels, values, "bars")


def _bars(rng: random.Random, face: str, colours: Palette, split: Split) -> Drawn | None:
    """Lying bars with the label before and the value behind."""
    labels, values = _data(rng, split)
    page = _page(rng, colours, [(3, 2), (2, 2), (2, 1), (2, 3), (3, 1)])
    height = rng.uniform(MIN_HEIGHT, 18)
    slot = (page.height - 2 * MARGIN) / len(values)
    left = MARGIN + max(page.text_width(label, face, height) for label in labels) + 5
    right = page.width - MARGIN - page.text_width(str(max(values)), face, height) - 5
    if right - left < 40 or slot < height * 1.3:
        return None
    fills = _fills(rng, page, len(values))
    thick = min(slot * rng.uniform(0.5, 0.8), 40.0)
    for number, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle, end = MARGIN + slot * (number + 0.5), left + (right - left) * value / max(values)
        page.box(left, middle - thick / 2, end, middle + thick / 2, fill=fills[number])
        page.text(left - 5, middle - height / 2, label, face=face, height=height, align=1.0)
        page.text(end + 4, middle - height / 2, str(value), face=face, height=height)
    return _asked(rng, page, face, labels, values, "bars")


def _points(rng: random.Random, face: str, colours: Palette, split: Split) -> Drawn | None:
    """A line through three to five points, each with its value above."""
    labels, values = _data(rng, split)
    page = _page(rng, colours, [(3, 2), (2, 2), (2, 1), (3, 1)])
    height = rng.uniform(MIN_HEIGHT, 17)
    slot = (page.width - 2 * MARGIN) / len(values)
    base, top = page.height - MARGIN - height * 1.3, MARGIN + height * 1.6
    if len(values) < 3 or base - top < 35 or not _fits(page, labels, values, face, height, slot):
        return None
    unit = (base - top - 4) / max(values)
    places = [(MARGIN + slot * (n + 0.5), base - 4 - value * unit) for n, value in enumerate(values)]
    fill = _fills(rng, page, 1)[0]
    page.line([(MARGIN, base), (page.width - MARGIN, base)], colour=page.palette.ink)
    page.line(places, colour=fill, thickness=rng.uniform(1.5, 3))
    for (x, y), label, value in zip(places, labels, values, strict=True):
        page.box(x - 3, y - 3, x + 3, y + 3, fill=fill)
        page.text(x, base + height * 0.25, label, face=face, height=height, align=0.5)
        page.text(x, y - height * 1.4, str(value), face=face, height=height, align=0.5)
    return _asked(rng, page, face, labels, values, "points")


def _table(rng: random.Random, face: str, colours: Palette, split: Split) -> Drawn | None:
    """A head and two to four rows; the first column names them."""
    columns = rng.sample(COLUMNS, rng.randint(1, 3))
    labels = rng.sample(assets.words(split, rng.choice(("products", "first_names"))), rng.randint(2, 4))
    rows = [[label, *(_cell(rng, column) for column in columns)] for label in labels]
    page = _page(rng, colours, [(3, 2), (2, 2), (2, 1), (3, 1), (2, 3)])
    height = rng.uniform(MIN_HEIGHT, 18)
    printed = [[rng.choice(("", "Name", "Item")), *columns], *rows]
    widths = [max(page.text_width(row[n], face, height) for row in printed) + 10 for n in range(len(columns) + 1)]
    step = height * rng.uniform(1.4, 1.8)
    if sum(widths) > page.width - 2 * MARGIN or step * len(printed) > page.height - 2 * MARGIN:
        return None
    spread = rng.uniform(0.0, 1.0) * (page.width - 2 * MARGIN - sum(widths)) / len(widths)
    x, y = (rng.choice((0.0, 0.0, 0.5, rng.random())) for _ in range(2))
    start = MARGIN + x * (page.width - 2 * MARGIN - sum(widths) - spread * len(widths))
    upper = MARGIN + y * (page.height - 2 * MARGIN - step * len(printed))
    edges = [start + sum(widths[:n]) + spread * n for n in range(len(widths) + 1)]
    lower = upper + step * len(printed)
    ruled, framed = rng.random() < 0.6, rng.random() < 0.5
    for number, row in enumerate(printed):
        top = upper + step * number
        for left, text in zip(edges, row, strict=False):
            page.text(left + 5, top + (step - height) / 2, text, face=face, height=height)
        if number == 1 or (ruled and number):
            page.line([(start, top), (edges[-1], top)], colour=page.palette.accent)
    if framed:
        page.box(start, upper, edges[-1], lower, outline=page.palette.accent)
        for edge in edges[1:-1]:
            page.line([(edge, upper), (edge, lower)], colour=page.palette.accent)
    cells = [
        Asked("cell", value, {"column": column.lower(), "label": label})
        for label, *values in rows
        for column, value in zip(columns, values, strict=True)
    ]
    rng.shuffle(cells)
    return _drawn(rng, page, face, cells, tuple(labels))


def _cell(rng: random.Random, column: str) -> str:
    if column in ("Price", "Cost"):
        return f"{rng.choice(('', '$'))}{rng.uniform(0.5, 90):.2f}"
    return str(rng.randint(1990, 2030) if column == "Year" else rng.randint(1, 300))


def _data(rng: random.Random, split: Split) -> tuple[list[str], list[int]]:
    """Two to five categories with different whole values that differ enough to be seen."""
    num = rng.randint(2, 5)
    month, year = rng.randint(0, 12 - num), rng.randint(1990, 2028)
    kinds = (
        lambda: rng.sample(assets.words(split, "products"), num),
        lambda: [word.capitalize() for word in rng.sample(assets.words(split), num)],
        lambda: rng.sample(assets.words(split, "first_names"), num),
        lambda: [*MONTHS[month : month + num]],
        lambda: list(map(str, range(year, year + num))),
        lambda: list("ABCDE"[:num]),
        lambda: [f"Q{quarter}" for quarter in range(1, min(num, 4) + 1)],
    )
    labels = rng.choice(kinds)()
    largest = rng.choice((20, 100, 100, 500))
    values = rng.sample(range(1, 21), len(labels))
    return labels, [max(1, value * largest // 20 - rng.randrange(max(1, largest // 20))) for value in values]


def _page(rng: random.Random, colours: Palette, grids: list[tuple[int, int]]) -> Page:
    return Page.blank(rng, rng.choice(grids), colours, plain=True)


def _fits(page: Page, labels: list[str], values: list[int], face: str, height: float, slot: float) -> bool:
    return all(page.text_width(text, face, height) <= slot - 4 for text in (*labels, *map(str, values)))


def _fills(rng: random.Random, page: Page, num: int) -> list[Colour]:
    """One colour for all bars, or one for each."""
    colours = accents(rng, page.palette.paper)
    return rng.sample(colours, num) if rng.random() < 0.4 else [rng.choice(colours)] * num


def _asked(
    rng: random.Random, page: Page, face: str, labels: list[str], values: list[int], things: str
) -> Drawn:  # fmt: skip
    kind = rng.choices(("value", "largest", "smallest", "count"), (50, 20, 20, 10))[0]
    asked = [Asked("value", str(value), {"label": label}) for label, value in zip(labels, values, strict=True)]
    asked += [
        Asked("largest", labels[values.index(max(values))], {"things": things}),
        Asked("smallest", labels[values.index(min(values))], {"things": things}),
        Asked("count", str(len(values)), {"things": things}),
    ]
    rng.shuffle(asked)
    asked.sort(key=lambda one: one.kind != kind)
    words = tuple(label for label in labels if label not in MONTHS and len(label) > 2 and label.isalpha())
    return _drawn(rng, page, face, asked, words)


def _drawn(
    rng: random.Random,
    page: Page,
    face: str,
    asked: list[Asked],
    words: tuple[str, ...],
) -> Drawn:
    """The first of `asked` is the question."""
    facts = {"font": face, "words": words}
    return Drawn(image=page.worn(rng), asked=asked[0], more=asked[1:], glyphs=page.glyphs, facts=facts)
