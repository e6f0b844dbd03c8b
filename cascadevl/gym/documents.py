"""Key-value documents: receipts and forms, and a question about one of their fields."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from cascadevl.gym import assets
from cascadevl.gym.assets import Split
from cascadevl.gym.family import Asked, Drawn, Family, Phrasings
from cascadevl.gym.page import Page, palette
from cascadevl.gym.text import MIN_HEIGHT, amount, code, date

PHRASINGS = {
    "total": Phrasings(
        trained=(
            "What is the total?", "How much is the total?", "What is the total amount?",
            "What does it cost in total?", "How much is it in total?", "What is the amount to pay?",
            "Total?", "What is the sum to be paid?", "Read the total.",
            "How much is it altogether?", "What is to be paid in all?",
            "How much has to be paid?", "How much must I pay?",
            "What do they charge altogether?", "Which sum has to be paid?",
        ),
        held_out=("How much has to be paid altogether?", "Which total is printed?", "Tell me the total."),
    ),
    "customer": Phrasings(
        trained=(
            "Who is the {role}?", "What is the name of the {role}?", "What is the {role}'s name?",
            "Name of the {role}?", "Read the name of the {role}.", "What name is given?",
            "Which {role} is named?", "Whose name is written here?",
            "Give the name of the {role}.", "Who is named as the {role}?",
            "What are they called, the {role}?", "Tell me the name of the {role}.",
        ),
        held_out=("Tell me who the {role} is.", "What is the {role} called?"),
    ),
    "date": Phrasings(
        trained=(
            "What is the date?", "Which date is shown?", "What date is printed?", "When was it issued?",
            "Read the date.", "Date?", "On which date was this made?", "What date does it show?",
            "What day is it from?", "Which day is on this document?",
            "From when is this?", "On what day was this document made?",
            "Tell me which date is shown.",
        ),
        held_out=("Tell me the date.", "From what day is this document?"),
    ),
    "due": Phrasings(
        trained=(
            "When is it due?", "What is the due date?", "By when must it be paid?",
            "Which due date is shown?", "Read the due date.", "Due date?", "Until when can it be paid?",
            "What is the last day to pay?",
            "By which date is it due?", "When does it have to be paid?",
            "By what day must I pay?", "Which day is the last to pay it?",
            "Tell me the due date.",
        ),
        held_out=("Tell me when it is due.", "By which day does it have to be paid?"),
    ),
    "field": Phrasings(
        trained=(
            "What is the {noun}?", "Which {noun} is shown?", "Read the {noun}.", "What {noun} is printed?",
            "What {noun} does it show?", "Find the {noun}.", "What does it say for the {noun}?",
            "Give the {noun}.",
            "Look for the {noun}.", "Which {noun} does it have?",
            "Tell me which {noun} is shown.", "Show me the {noun}.",
        ),
        held_out=("Tell me the {noun}.", "Look up the {noun}."),
    ),
    "price": Phrasings(
        trained=(
            "How much is the {item}?", "What does the {item} cost?", "What is the price of the {item}?",
            "Price of the {item}?", "How much does the {item} cost?", "What was paid for the {item}?",
            "Read the price of the {item}.", "What is the {item}'s price?",
            "How much was the {item}?", "What was charged for the {item}?",
            "How much did they charge for the {item}?", "Tell me what the {item} cost.",
        ),
        held_out=("How much was charged for the {item}?", "Tell me the price of the {item}."),
    ),
    "shop": Phrasings(
        trained=(
            "What is the name of the shop?", "Which shop is this from?", "What shop is this?",
            "Where was this bought?", "Name of the store?", "What is the store called?",
            "Which store is it?", "Read the name of the shop.",
            "From which shop is it?", "Which store gave this receipt?",
            "What is the store's name?", "Whose receipt is this?",
            "Tell me which shop this is.",
        ),
        held_out=("Tell me the shop's name.", "From which store is this receipt?"),
    ),
}  # fmt: skip

TOTALS = (
    "Total",
    "TOTAL",
    "Total:",
    "Amount due",
    "Grand total",
    "Total due",
    "To pay",
    "Sum",
    "Total amount",
)
SUBTOTALS = ("Subtotal", "SUBTOTAL", "Sub-total", "Net")
TAXES = ("Tax", "TAX", "VAT", "Sales tax")
DATES = ("Date", "DATE", "Issued", "Day", "Date of issue")
DUES = ("Due", "Due date", "Pay by", "Payable by")
PEOPLE = (
    ("Name", "customer"), ("NAME", "customer"), ("Customer", "customer"), ("Bill to", "customer"),
    ("Client", "client"), ("Guest", "guest"), ("Passenger", "passenger"), ("Patient", "patient"),
    ("Member", "member"),
)  # fmt: skip
CODES = (
    ("Order no.", "order number"), ("Order", "order number"), ("Invoice no.", "invoice number"),
    ("Invoice", "invoice number"), ("Ticket", "ticket number"), ("Ref.", "reference"),
    ("Booking", "booking number"), ("Customer ID", "customer ID"), ("Account", "account number"),
)  # fmt: skip
PLACES = ("Room", "Seat", "Table", "Gate", "Desk", "Floor")
GRIDS = ((2, 3), (2, 3), (2, 2), (3, 2), (3, 2), (1, 2), (2, 1))


class Row(NamedTuple):
    """A printed label and value, and the question to which the value is the answer."""

    label: str
    value: str
    kind: str = ""
    """Key into PHRASINGS; empty for rows that nobody asks about."""
    blanks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyValue(Family):
    """One field of a receipt or a form; its printed value is the answer."""

    name: ClassVar[str] = "keyvalue"
    phrasings: ClassVar[Mapping[str, Phrasings]] = PHRASINGS

    def drawn(self, rng: random.Random) -> Drawn:
        face = rng.choice(assets.faces(self.split))
        colours = palette(rng, plain=rng.random() < 0.6)
        while True:
            page = Page.blank(rng, rng.choice(GRIDS), colours, plain=rng.random() < 0.7)
            title, rows, words = rng.choice((_receipt, _form))(rng, self.split)
            layout = rng.choice((_ends, _ends, _colon, _columns))
            height = _fitting_height(rng, page, face, title, rows, layout)
            if height:
                break
        layout(rng, page, face, title, rows, height)
        askable = [Asked(row.kind, row.value, dict(row.blanks)) for row in (title, *rows) if row.kind]
        # Totals are asked for more often than others, as people do.
        asked = rng.choice(askable + [one for one in askable if one.kind == "total"] * 2)
        askable.remove(asked)
        facts = {"font": face, "words": words}
        return Drawn(image=page.worn(rng), asked=asked, more=askable, glyphs=page.glyphs, facts=facts)


def _receipt(rng: random.Random, split: Split) -> tuple[Row, list[Row], tuple[str, ...]]:
    """A shop, what was bought, and what it comes to."""
    shop = assets.shop(rng, split)
    sign = rng.choice(("$", "$", "$", "€", "£", ""))
    items = rng.sample(assets.words(split, "products"), rng.randint(1, 4))
    cents = [rng.randint(50, 4000) for _ in items]
    rows = [
        Row(item, f"{sign}{price / 100:.2f}", "price", (("item", item.lower()),))
        for item, price in zip(items, cents, strict=True)
    ]
    tax = round(sum(cents) * rng.choice((0.05, 0.07, 0.1, 0.19, 0.2)))
    if with_tax := rng.random() < 0.5:
        if rng.random() < 0.6:
            subtotal = f"{sign}{sum(cents) / 100:,.2f}"
            rows.append(Row(rng.choice(SUBTOTALS), subtotal, "field", (("noun", "subtotal"),)))
        rows.append(Row(rng.choice(TAXES), f"{sign}{tax / 100:.2f}", "field", (("noun", "tax"),)))
    total = sum(cents) + tax * with_tax
    rows.append(Row(rng.choice(TOTALS), f"{sign}{total / 100:,.2f}", "total"))
    if rng.random() < 0.5:
        rows.insert(rng.choice((0, len(rows))), Row(rng.choice(DATES), date(rng), "date"))
    if rng.random() < 0.2:
        rows.insert(0, _numbered(rng))
    heading = shop.upper() if rng.random() < 0.3 else shop
    return Row("", heading, "shop"), rows, (*shop.split(), *items)


def _form(rng: random.Random, split: Split) -> tuple[Row, list[Row], tuple[str, ...]]:
    """A card or an invoice head: who, when, which, how much."""
    person = assets.person(rng, split)
    label, role = rng.choice(PEOPLE)
    place = rng.choice(PLACES)
    makers: list[Callable[[], Row]] = [
        lambda: Row(rng.choice(DATES), date(rng), "date"),
        lambda: Row(rng.choice(DUES), date(rng), "due"),
        lambda: _numbered(rng),
        lambda: Row(rng.choice(TOTALS), amount(rng), "total"),
        lambda: Row(place, str(rng.randint(1, 600)), "field", (("noun", place.lower()),)),
        lambda: Row(
            rng.choice(("Phone", "Tel.", "Mobile")), f"{rng.randint(100, 999)}-{rng.randint(1000, 9999)}",
            "field", (("noun", "phone number"),),
        ),
    ]  # fmt: skip
    rows = [make() for make in rng.sample(makers, rng.randint(2, 6))]
    rows.insert(rng.choice((0, 0, rng.randrange(len(rows)))), Row(label, person, "customer", (("role", role),)))
    heading = rng.choice(("", "", "Invoice", "Order", "Booking", "Ticket", "Registration", "Bill", "Card"))
    return Row("", heading), rows, tuple(person.split())


def _numbered(rng: random.Random) -> Row:
    label, noun = rng.choice(CODES)
    return Row(label, code(rng), "field", (("noun", noun),))


Layout = Callable[[random.Random, Page, str, Row, list[Row], float], None]

STEP = 1.4
"""Distance of the rows in letter heights."""
MARGIN = 5.0


def _fitting_height(
    rng: random.Random, page: Page, face: str, title: Row, rows: list[Row], layout: Layout
) -> float | None:  # fmt: skip
    """A letter height at which title and rows fit the page, or None."""
    room = page.width - 2 * MARGIN
    num_lines = len(rows) + (1.3 if title.value else 0.0)
    most = min(28.0, (page.height - 2 * MARGIN) / (STEP * num_lines))
    most = min(most, 20 * room / _widest(page, face, title, rows, layout, 20))
    if most < MIN_HEIGHT or _widest(page, face, title, rows, layout, MIN_HEIGHT) > room:
        return None
    # Font sizes are whole pixels, so that widths do not quite grow in proportion.
    while _widest(page, face, title, rows, layout, most) > room:
        most = max(MIN_HEIGHT, most - 0.5)
    return rng.uniform(max(MIN_HEIGHT, 0.7 * most), most)


def _widest(page: Page, face: str, title: Row, rows: list[Row], layout: Layout, height: float) -> float:
    labels = [page.text_width(f"{row.label.rstrip(':')}:", face, height) for row in rows]
    values = [page.text_width(row.value, face, height) for row in rows]
    if layout is _columns:
        widest = max(labels) + max(values)
    else:
        widest = max(label + value for label, value in zip(labels, values, strict=True))
    return max(widest + height, page.text_width(title.value, face, height))


def _title(rng: random.Random, page: Page, face: str, title: Row, num_rows: int, height: float) -> float:
    """Prints the heading, if there is one, and returns where the rows begin."""
    spare = page.height - 2 * MARGIN - (num_rows + (1.3 if title.value else 0.0)) * STEP * height
    top = MARGIN + max(0.0, spare) * rng.choice((0.0, 0.5, 0.2))
    if not title.value:
        return top
    if rng.random() < 0.5:
        page.text(page.width / 2, top, title.value, face=face, height=height, align=0.5)
    else:
        page.text(MARGIN, top, title.value, face=face, height=height)
    if rng.random() < 0.4:
        rule = top + 1.25 * height
        page.line([(MARGIN, rule), (page.width - MARGIN, rule)], colour=page.palette.accent)
    return top + 1.3 * STEP * height


def _ends(rng: random.Random, page: Page, face: str, title: Row, rows: list[Row], height: float) -> None:
    """Labels at the left edge, values at the right one, as on receipts."""
    top = _title(rng, page, face, title, len(rows), height)
    ruled = rng.random() < 0.3
    for row in rows:
        page.text(MARGIN, top, row.label, face=face, height=height)
        page.text(page.width - MARGIN, top, row.value, face=face, height=height, align=1.0)
        top += STEP * height
        if ruled and row is not rows[-1]:
            rule = top - 0.18 * height
            page.line([(MARGIN, rule), (page.width - MARGIN, rule)], colour=page.palette.accent)


def _colon(rng: random.Random, page: Page, face: str, title: Row, rows: list[Row], height: float) -> None:
    """`Label: value` from the left."""
    top = _title(rng, page, face, title, len(rows), height)
    for row in rows:
        label = f"{row.label.rstrip(':')}:"
        _, _, right, _ = page.text(MARGIN, top, label, face=face, height=height)
        page.text(right / page.scale + 0.4 * height, top, row.value, face=face, height=height)
        top += STEP * height


def _columns(rng: random.Random, page: Page, face: str, title: Row, rows: list[Row], height: float) -> None:
    """Labels and values below each other in two columns; labels may be in the accent colour."""
    top = _title(rng, page, face, title, len(rows), height)
    widest = max(page.text_width(f"{row.label}:", face, height) for row in rows)
    spare = page.width - 2 * MARGIN - _widest(page, face, title, rows, _columns, height)
    column = MARGIN + widest + 0.8 * height + max(0.0, spare) * rng.choice((0.0, 0.3, 0.6))
    colour = page.palette.accent if rng.random() < 0.2 else page.palette.ink
    for row in rows:
        page.text(MARGIN, top, row.label, face=face, height=height, colour=colour)
        page.text(column, top, row.value, face=face, height=height)
        top += STEP * height
