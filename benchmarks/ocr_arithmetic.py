"""Choosing among the answers of several readers to sums on spoiled pictures.

    python benchmarks/ocr_arithmetic.py --work work/ --json benchmarks/results/ocr_arithmetic.json

A picture shows a sum such as `48 * 7 + 136 =`; a reader's answer is the value of what it has read, if that is a sum at
all. Consensus Entropy's paper reports +6.0 % on such a task with models; here the readers are programs. Nothing is
chosen on these pictures: members and trust are those of `ocr_consensus.py`.
"""

import argparse
import ast
import json
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ocr_measures import interval, medoid
from ocr_pages import Page, faces_of, spoil
from PIL import Image, ImageDraw, ImageFont

from cascadevl.apps.ocr_consensus.hosted import Kept
from cascadevl.apps.ocr_consensus.readers import Cleaned, EasyOcr, OnLines, RapidOcr, Reader, Tesseract
from cascadevl.core.files import write_json
from cascadevl.scoring.consensus import score

OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


def make_sums(num: int) -> list[Page]:
    faces = faces_of("test")
    return [_sum(number, faces) for number in range(num)]


def _sum(number: int, faces: Sequence[Path]) -> Page:
    rng = random.Random(f"sum {number}")
    text = str(rng.randint(2, 999))
    for _ in range(rng.randint(1, 3)):
        text += f" {rng.choice('+-*')} {rng.randint(2, 999)}"
    face, size_px = rng.choice(faces), rng.randint(18, 30)
    font = ImageFont.truetype(face, size_px)
    image = Image.new("L", (int(font.getlength(text + " =")) + 120, 240), rng.randint(225, 255))
    ImageDraw.Draw(image).text((60, 100), text + " =", rng.randint(0, 60), font)
    page = Page(name=f"sum{number:03}", image=image, text=text, language="en", layout="sum", face=face.stem)
    spoil(page, rng, size_px)
    return page


def answer(text: str) -> int | None:
    """The value of a sum; None if it is none."""
    plain = re.sub(r"\s", "", text.translate(str.maketrans("×xX·—–−", "****---"))).rstrip("=").rstrip(".-_=")
    if not re.fullmatch(r"\d+([+*-]\d+)+", plain) or re.search(r"(?<!\d)0\d", plain):
        return None
    return _value(ast.parse(plain, mode="eval").body)


def _value(node: Any) -> int:
    if isinstance(node, ast.Constant):
        return int(str(node.value))
    return OPERATORS[type(node.op)](_value(node.left), _value(node.right))


def most_common(texts: Sequence[str]) -> int | None:
    """Self-consistency: the answer that most readers give."""
    found = Counter(value for value in map(answer, texts) if value is not None)
    return found.most_common(1)[0][0] if found else None


def nearest(texts: Sequence[str]) -> int | None:
    """Consensus Entropy on the answers instead of the texts: the medoid of those who have one."""
    found = [str(value) for value in map(answer, texts) if value is not None]
    return int(medoid(found)) if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--num", type=int, default=120)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cache = arguments.work / "sums"
    line = Tesseract(layout=7, timeout_s=60)
    rapidocr = RapidOcr()
    readers: list[Reader] = [rapidocr, line, Cleaned(line), OnLines(EasyOcr(), Kept(rapidocr, cache))]
    pages = make_sums(arguments.num)
    texts = {reader.name: [_read(Kept(reader, cache), page) for page in pages] for reader in readers}
    members = ("rapidocr", "clean:tesseract", "easyocr")
    ways: dict[str, Callable[[Sequence[str]], int | None]] = {
        "medoid": lambda said: answer(medoid(said)),
        "most common answer": most_common,
        "medoid of answers": nearest,
        "consensus": lambda said: answer(score([each for each in said if each] or [""]).text),
    }
    together = list(zip(*(texts[name] for name in members), strict=True))
    given = {name: [answer(text) for text in said] for name, said in texts.items()}
    given |= {name: [way(said) for said in together] for name, way in ways.items()}
    right = {
        name: np.array([value == answer(page.text) for value, page in zip(found, pages, strict=True)])
        for name, found in given.items()
    }
    best = max(texts, key=lambda name: int(right[name].sum()))
    report: dict[str, Any] = {"num": len(pages), "best single reader": best}
    report |= {name: interval(lambda at, hit=hit: float(hit[at].mean()), len(pages)) for name, hit in right.items()}
    report["relative gain over the best reader"] = {
        name: interval(lambda at, n=name: float(right[n][at].mean() / right[best][at].mean() - 1), len(pages))
        for name in ways
    }
    print(json.dumps(report, indent=1))
    if arguments.json:
        write_json(arguments.json, report)


def _read(reader: Kept, page: Page) -> str:
    try:
        return " ".join(reader.read(page.image).text.split())
    except Exception:  # a reader that failed has no answer
        return ""


if __name__ == "__main__":
    main()
