"""What `./run` does: draw pictures that nano has never seen, ask about them, print answers and times.

The typeface is Pillow's own (Aileron) and the words are in none of the training lists, so nothing
here can have been learned by heart but the labels of fields, such as "Total". The pictures are of
kinds that nano can read at all; its card says how often it does. Run it alone with:
python examples/quickstart.py [FOLDER] (the pictures are kept in FOLDER if one is given).
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

Draw = ImageDraw.ImageDraw


class Question(NamedTuple):
    name: str
    size: tuple[int, int]
    draw: Callable[[Draw], None]
    question: str
    answer: str


def text(draw: Draw, x: int, y: int, words: str, size: int, fill: str = "black") -> None:
    draw.text((x, y), words, font=ImageFont.load_default(size=size), fill=fill)


def line(words: str) -> Callable[[Draw], None]:
    return lambda draw: text(draw, 30, 60, words, 44)


def rows(*lines: tuple[str, str]) -> Callable[[Draw], None]:
    def draw(pen: Draw) -> None:
        for number, (left, right) in enumerate(lines):
            text(pen, 20, 20 + 48 * number, left, 30)
            text(pen, 240, 20 + 48 * number, right, 30)

    return draw


def bars(**values: int) -> Callable[[Draw], None]:
    def draw(pen: Draw) -> None:
        for number, (name, value) in enumerate(values.items()):
            x, top = 50 + 140 * number, 330 - 5 * value
            pen.rectangle((x, top, x + 80, 330), fill="steelblue")
            text(pen, x + 20, top - 40, str(value), 30)
            text(pen, x, 345, name, 30)

    return draw


QUESTIONS = [
    Question("word", (448, 224), line("Marigold"), "What does it say?", "Marigold"),
    Question("line", (448, 224), line("pelican lagoon"), "Read the text.", "pelican lagoon"),
    Question("amount", (448, 224), line("$1,739.62"), "What does it say?", "$1,739.62"),
    Question(
        "receipt",
        (400, 266),
        rows(("Sorbet", "$3.85"), ("Lemonade", "$2.40"), ("Tax", "$0.57"), ("Total", "$6.82")),
        "What is the total?",
        "$6.82",
    ),
    Question(
        "form",
        (480, 240),
        rows(("Name:", "Ottilie Quist"), ("Date:", "14.09.2023"), ("Order no.:", "KX-5817")),
        "What is the date?",
        "14.09.2023",
    ),
    Question(
        "invoice",
        (400, 200),
        rows(("Invoice", "7731"), ("Due", "2024-03-18"), ("Total", "$248.90")),
        "When is it due?",
        "2024-03-18",
    ),
    Question("chart", (480, 400), bars(Oslo=24, Lima=51, Kyiv=38), "Which is the largest?", "Lima"),
]


def main(folder: Path | None) -> None:
    started = time.perf_counter()
    import cascadevl

    bundle = cascadevl.load("nano")
    print(f"loaded {bundle.name}, spec {bundle.spec.hash}, in {time.perf_counter() - started:.1f} s\n")
    right = 0
    for item in QUESTIONS:
        picture = Image.new("RGB", item.size, "white")
        item.draw(ImageDraw.Draw(picture))
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{item.name}.png")
        asked = time.perf_counter()
        answer = bundle.ask(item.question, images=[picture])
        seconds = time.perf_counter() - asked
        right += answer == item.answer
        mark = "right" if answer == item.answer else f"wrong, it is {item.answer!r}"
        print(f"{item.name:8} {item.question:34} {answer!r:20} {seconds:5.2f} s  {mark}")
    print(f'\n{right} of {len(QUESTIONS)} right. Next: ./run ask YOUR.png "Read the text."')


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
