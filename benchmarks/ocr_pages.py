"""Scanned pages with known text: real paragraphs in four languages, many typefaces and layouts, then spoiled.

    mkdir texts && cd texts
    apt-get download debian-reference-en debian-reference-de debian-reference-fr debian-reference-es
    for each in *.deb; do dpkg -x $each .; done

The texts are paragraphs of the Debian Reference (GPL) and of /usr/share/common-licenses; the faces come with the Debian
packages fonts-croscore, -dejavu, -oldstandard, -sil-gentiumplus, -gnutypewriter, -inconsolata, -lato, -liberation,
-quicksand, -roboto-unhinted, -comic-neue, -ebgaramond, -linuxlibertine and -urw-base35. Paragraphs, typefaces and
seeds of the development part and of the test part are different ones; the share of every damage is the same.
"""

import hashlib
import html
import io
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

LANGUAGES = {"en": 0.4, "de": 0.2, "fr": 0.2, "es": 0.2}
"""Language -> its share of the pages."""

FONTS = (
    "croscore", "dejavu/DejaVuS*", "fonts-oldstandard", "gentiumplus", "gnutypewriter", "inconsolata",
    "lato/Lato-[RBIM]*", "liberation", "quicksand", "roboto", "comic-neue", "ebgaramond",
    "linux-libertine/Lin*_R*", "urw-base35/[CNPU]*",
)  # fmt: skip
"""Folders and names below /usr/share/fonts/{truetype,opentype}: Latin text faces, from book to typewriter."""

DAMAGES = ("noise", "speckles", "blur", "skew", "jpeg", "low resolution", "shadow", "show-through", "faded")


@dataclass(kw_only=True)
class Page:
    """A picture, what is written on it, and how it came about."""

    name: str
    image: Image.Image
    text: str
    language: str
    layout: str
    face: str
    damages: dict[str, float] = field(default_factory=dict)
    """Damage -> how strong, 0 to 1."""


def make_pages(texts: Path, part: str, num: int) -> list[Page]:
    """The same pages for the same arguments. `part` is "dev" or "test"."""
    paragraphs = {language: _paragraphs(texts, language, part) for language in LANGUAGES}
    faces = faces_of(part)
    return [_page(part, number, paragraphs, faces) for number in range(num)]


def _half(name: str) -> str:
    """A third of all names belongs to the development part."""
    return "dev" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 3 == 0 else "test"


def _paragraphs(texts: Path, language: str, part: str) -> list[str]:
    files = sorted(texts.rglob(f"ch*.{language}.html"))
    found = [
        html.unescape(re.sub("<[^>]*>", "", match))
        for file in files
        for match in re.findall("<p[^>]*>(.*?)</p>", file.read_text(encoding="utf-8"), re.DOTALL)
    ]
    if language == "en":
        licences = sorted(Path("/usr/share/common-licenses").glob("[AGLM]*"))
        found += [each for file in licences for each in file.read_text(errors="replace").split("\n\n")]
    clean = dict.fromkeys(" ".join(each.split()) for each in found)
    kept = [each for each in clean if 80 < len(each) < 900 and _is_prose(each)]
    assert len(kept) > 100, f"{texts} holds only {len(kept)} paragraphs of {language!r}: see the head of this file"
    return [each for each in kept if _half(each) == part]


def _is_prose(text: str) -> bool:
    """No code, no addresses, and nothing outside of Latin script."""
    said = sum(char.isalpha() or char == " " for char in text)
    return said > 0.93 * len(text) and not re.search(r"[^\x20-\u017f‘’“”„–—…€]|[$#=\\<>|]", text)


def faces_of(part: str) -> list[Path]:
    files = []
    for pattern in FONTS:
        for root in map(Path, ("/usr/share/fonts/truetype", "/usr/share/fonts/opentype")):
            files += root.glob(pattern) if "/" in pattern else root.glob(f"{pattern}/**/*.[to]tf")
    found = sorted(
        {file for file in files if not re.search("Black|Thin|Hairline|ExtraLight|Display|Initials", file.name)}
    )
    found = [file for file in found if _is_complete(file)]
    # By family, so that no part sees the bold of a face whose regular the other one has seen.
    return [file for file in found if _half(re.split("[-_]", file.stem)[0]) == part]


def _is_complete(file: Path) -> bool:
    """Does the face have every letter and quote of the four languages?"""
    font = ImageFont.truetype(file, 20)
    missing = _drawn(font, "\uffff")
    return all(_drawn(font, char) not in (missing, b"") for char in "äöüßéèêàçñíóú¿’“”–")


def _drawn(font: ImageFont.FreeTypeFont, char: str) -> bytes:
    return bytes(font.getmask(char))  # pyright: ignore[reportArgumentType]


def _page(part: str, number: int, paragraphs: dict[str, list[str]], faces: list[Path]) -> Page:
    rng = random.Random(f"{part} {number}")
    [language] = rng.choices(list(LANGUAGES), list(LANGUAGES.values()))
    face = rng.choice(faces)
    layout = rng.choice(list(LAYOUTS))
    size_px = rng.randint(17, 28)
    sheet = _Sheet(rng, ImageFont.truetype(face, size_px), size_px, width_px=rng.randint(620, 860))
    LAYOUTS[layout](sheet, paragraphs[language])
    page = Page(
        name=f"{part}{number:03}", image=sheet.picture(), text="\n".join(sheet.text), language=language,
        layout=layout, face=face.stem,
    )  # fmt: skip
    spoil(page, rng, size_px)
    return page


class _Sheet:
    """A page that is written on from top to bottom."""

    def __init__(self, rng: random.Random, font: ImageFont.FreeTypeFont, size_px: int, width_px: int) -> None:
        self.rng, self.font, self.size_px, self.width_px = rng, font, size_px, width_px
        self.margin_px = rng.randint(30, 70)
        self.pitch_px = size_px * rng.uniform(1.25, 1.65)
        self.top_px = float(self.margin_px)
        self.marks: list[tuple[float, float, str]] = []
        self.text: list[str] = []

    def wrap(self, text: str, width_px: float) -> list[str]:
        lines: list[str] = []
        for word in text.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self.font.getlength(longer) <= width_px:
                lines[-1] = longer
            elif self.font.getlength(word) <= width_px:
                lines.append(word)
        return lines

    def write(self, lines: list[str], left_px: float | None = None) -> None:
        for line in lines:
            self.put(line, self.margin_px if left_px is None else left_px, self.top_px)
            self.text.append(line)
            self.top_px += self.pitch_px

    def put(self, text: str, left_px: float, top_px: float) -> None:
        self.marks.append((left_px, top_px, text))

    @property
    def inner_px(self) -> float:
        return self.width_px - 2 * self.margin_px

    def picture(self) -> Image.Image:
        image = Image.new("L", (self.width_px, int(self.top_px + self.margin_px)), self.rng.randint(225, 255))
        draw = ImageDraw.Draw(image)
        ink = self.rng.randint(0, 60)
        for left, top, text in self.marks:
            draw.text((left, top), text, ink, self.font)
        return image


def _prose(sheet: _Sheet, paragraphs: list[str]) -> None:
    wanted = sheet.rng.randint(6, 13)
    while len(sheet.text) < wanted:
        sheet.write(sheet.wrap(sheet.rng.choice(paragraphs), sheet.inner_px)[: wanted - len(sheet.text)])
        sheet.top_px += sheet.rng.choice([0, 0.6]) * sheet.pitch_px


def _headed(sheet: _Sheet, paragraphs: list[str]) -> None:
    sheet.write(
        [f"{sheet.rng.randint(1, 12)}.{sheet.rng.randint(1, 9)} {sheet.wrap(sheet.rng.choice(paragraphs), 250)[0]}"]
    )
    sheet.top_px += sheet.pitch_px
    _prose(sheet, paragraphs)


def _numbered(sheet: _Sheet, paragraphs: list[str]) -> None:
    for number in range(1, sheet.rng.randint(4, 6)):
        lines = sheet.wrap(f"{number}. {sheet.rng.choice(paragraphs)}", sheet.inner_px)[: sheet.rng.randint(1, 3)]
        sheet.write(lines[:1])
        sheet.write(lines[1:], sheet.margin_px + 1.5 * sheet.size_px)


def _columns(sheet: _Sheet, paragraphs: list[str]) -> None:
    gutter = 2 * sheet.size_px
    sheet.width_px = max(sheet.width_px, 30 * sheet.size_px)
    width, top = (sheet.inner_px - gutter) / 2, sheet.top_px
    num = sheet.rng.randint(5, 8)
    bottoms = []
    for left in (sheet.margin_px, sheet.margin_px + width + gutter):
        sheet.top_px = top
        lines: list[str] = []
        while len(lines) < num:
            lines += sheet.wrap(sheet.rng.choice(paragraphs), width)
        sheet.write(lines[:num], left)
        bottoms.append(sheet.top_px)
    sheet.top_px = max(bottoms)


def _priced(sheet: _Sheet, paragraphs: list[str]) -> None:
    """An invoice: what, how many, an amount at the right margin."""
    rng = sheet.rng
    number = rng.randint(10000, 99999)
    sheet.write([f"No. {number}   {rng.randint(1, 28)}.{rng.randint(1, 12)}.20{rng.randint(10, 26)}"])
    total = 0
    rows = []
    for _ in range(sheet.rng.randint(5, 9)):
        cents = sheet.rng.choice([sheet.rng.randint(99, 9999), sheet.rng.randint(10_000, 999_999)])
        total += cents
        rows.append((" ".join(sheet.rng.choice(paragraphs).split()[:3]), cents))
    for what, cents in [*rows, ("Total", total)]:
        amount = f"{cents / 100:,.2f}"
        [label, *_] = sheet.wrap(what, sheet.inner_px - 8 * sheet.size_px)
        sheet.put(amount, sheet.width_px - sheet.margin_px - sheet.font.getlength(amount), sheet.top_px)
        sheet.put(label, sheet.margin_px, sheet.top_px)
        sheet.text.append(f"{label} {amount}")
        sheet.top_px += sheet.pitch_px


def _letter(sheet: _Sheet, paragraphs: list[str]) -> None:
    for _ in range(3):
        sheet.write(
            [" ".join(sheet.rng.choice(paragraphs).split()[:2]) + f" {sheet.rng.randint(1, 99999)}"],
            0.55 * sheet.width_px,
        )
    sheet.top_px += sheet.pitch_px
    _prose(sheet, paragraphs)


LAYOUTS = {
    "prose": _prose,
    "headed": _headed,
    "numbered": _numbered,
    "columns": _columns,
    "priced": _priced,
    "letter": _letter,
}


def spoil(page: Page, rng: random.Random, size_px: int) -> None:
    """Two to four damages, each of its own strength; strong ones are rarer than weak ones."""
    page.damages = {name: rng.betavariate(1.2, 1.6) for name in rng.sample(DAMAGES, rng.randint(2, 4))}
    numbers = np.random.default_rng(rng.getrandbits(32))
    image = page.image
    # In the order in which it happens: to the paper, to the light, in the camera, in the file.
    for name in ("show-through", "faded", "skew", "shadow", "blur", "low resolution", "noise", "speckles", "jpeg"):
        if name in page.damages:
            image = _damaged(image, name, page.damages[name], numbers, size_px)
    page.image = image.convert("RGB")


def _damaged(image: Image.Image, name: str, strength: float, numbers: np.random.Generator, size_px: int) -> Image.Image:
    match name:
        case "blur":
            return image.filter(ImageFilter.GaussianBlur(strength * 0.085 * size_px))
        case "skew":
            angle = numbers.choice([-1, 1]) * 4 * strength
            return image.rotate(
                angle, Image.Resampling.BICUBIC, expand=True, fillcolor=int(np.median(np.asarray(image)))
            )
        case "low resolution":
            scale = 1 - 0.6 * strength
            return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
        case "jpeg":
            file = io.BytesIO()
            image.save(file, "JPEG", quality=round(40 - 36 * strength))
            return Image.open(file).convert("L")
        case _:
            return Image.fromarray(
                _on_values(np.asarray(image, dtype=np.float32), name, strength, numbers).clip(0, 255).astype(np.uint8)
            )


def _on_values(grey: np.ndarray, name: str, strength: float, numbers: np.random.Generator) -> np.ndarray:
    height, width = grey.shape
    match name:
        case "noise":
            return grey + numbers.normal(0, 75 * strength, grey.shape)
        case "speckles":
            hit = numbers.random(grey.shape) < 0.06 * strength
            return np.where(hit, numbers.choice([0, 255], grey.shape), grey)
        case "shadow":
            rows, columns = np.mgrid[0:height, 0:width]
            angle = numbers.uniform(0, 2 * np.pi)
            along = np.cos(angle) * columns / width + np.sin(angle) * rows / height
            light = 1 / (1 + np.exp(-(along - np.median(along)) * numbers.uniform(4, 16)))
            return grey * (1 - 0.8 * strength * light)
        case "show-through":
            behind = np.asarray(
                Image.fromarray(grey.astype(np.uint8)[::-1, ::-1]).filter(ImageFilter.GaussianBlur(0.7))
            )
            behind = np.roll(behind.astype(np.float32), numbers.integers(3, 30, 2), (0, 1))
            return grey - 0.6 * strength * (behind.max() - behind)
        case _:
            paper = np.median(grey)
            return paper + (grey - paper) * (1 - 0.88 * strength)
