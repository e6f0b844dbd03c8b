"""Searchable PDFs: the picture of a page, and its text where it stands, invisible, to be found and copied.

The text is set in a font without shapes that maps every two bytes to the character of that number, as tesseract does
(https://github.com/tesseract-ocr/tesseract, pdfrenderer.cpp): any script can be searched, and nothing is embedded.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from cascadevl.core.errors import MissingExtra
from cascadevl.core.files import as_usual

A4_POINTS = 842.0
"""Longer side of the page a picture becomes, since scans seldom tell their resolution truly."""
QUALITY = 85
"""Of the JPEG inside."""
WIDTH = 0.5
"""Of every character of the font, in its size; words are stretched to their boxes."""
DESCENT = 0.2
"""Part of a box that lies below the base line."""

_TO_UNICODE = b"""/CIDInit /ProcSet findresource begin 12 dict begin begincmap
/CIDSystemInfo << /Registry (Adobe) /Ordering (UCS) /Supplement 0 >> def
/CMapName /Adobe-Identity-UCS def /CMapType 2 def
1 begincodespacerange <0000> <FFFF> endcodespacerange
1 beginbfrange <0000> <FFFF> <0000> endbfrange
endcmap CMapName currentdict /CMap defineresource pop end end
"""


def require_pikepdf() -> ModuleType:
    try:
        import pikepdf  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("Searchable PDFs are written by pikepdf: pip install pikepdf.") from error
    return pikepdf


def write_page(path: Path, image: Image.Image, facts: Mapping[str, Any]) -> None:
    """A PDF of one page; `facts` are those of its transcript."""
    pikepdf = require_pikepdf()
    pdf = pikepdf.new()
    points = A4_POINTS / max(image.size)
    size = [image.width * points, image.height * points]
    picture = io.BytesIO()
    image.convert("RGB").save(picture, "JPEG", quality=QUALITY)
    xobject = pdf.make_stream(
        picture.getvalue(), Type=pikepdf.Name.XObject, Subtype=pikepdf.Name.Image, Width=image.width,
        Height=image.height, ColorSpace=pikepdf.Name.DeviceRGB, BitsPerComponent=8, Filter=pikepdf.Name.DCTDecode,
    )  # fmt: skip
    resources = pikepdf.Dictionary(
        XObject=pikepdf.Dictionary(Scan=xobject), Font=pikepdf.Dictionary(Unseen=_font(pikepdf, pdf))
    )
    page = pikepdf.Dictionary(
        Type=pikepdf.Name.Page, MediaBox=[0, 0, *size], Resources=resources,
        Contents=pdf.make_stream(_content(facts, size, points)),
    )  # fmt: skip
    pdf.pages.append(pikepdf.Page(page))
    _save(pdf, path)


def join(path: Path, pages: Sequence[Path]) -> None:
    """One PDF of several."""
    pikepdf = require_pikepdf()
    whole = pikepdf.new()
    for each in pages:
        with pikepdf.open(each) as pdf:
            whole.pages.extend(pdf.pages)
    _save(whole, path)


def _save(pdf: Any, path: Path) -> None:
    """In one step: whoever looks finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.writing0")
    pdf.save(work)
    as_usual(work)
    work.replace(path)


def _content(facts: Mapping[str, Any], size: Sequence[float], points: float) -> bytes:
    out = [f"q {size[0]:.2f} 0 0 {size[1]:.2f} 0 0 cm /Scan Do Q", "BT 3 Tr"]
    for line in facts["lines"]:
        tokens = [token for token in line["tokens"] if token["text"]]
        for at, token in enumerate(tokens):
            box = token["box"] or line["box"]
            is_joined = at + 1 < len(tokens) and not tokens[at + 1]["space"]
            if box:
                out.append(_word(token["text"], [edge * points for edge in box], size[1], "" if is_joined else " "))
    return "\n".join([*out, "ET"]).encode("ascii")


def _word(text: str, box: Sequence[float], page_height: float, behind: str) -> str:
    left, top, right, bottom = box
    high = max(bottom - top, 1.0)
    # Two bytes a character: what lies beyond them, emoji for example, is found as a replacement character.
    codes = "".join(f"{ord(char) if ord(char) <= 0xFFFF else 0xFFFD:04X}" for char in text + behind)
    stretch = 100 * max(right - left, 0.1) / (WIDTH * high * len(text))
    base = page_height - bottom + DESCENT * high
    return f"/Unseen {high:.2f} Tf {stretch:.2f} Tz 1 0 0 1 {left:.2f} {base:.2f} Tm <{codes}> Tj"


def _font(pikepdf: ModuleType, pdf: Any) -> Any:
    name, dictionary = pikepdf.Name, pikepdf.Dictionary
    descriptor = dictionary(
        Type=name.FontDescriptor, FontName=name.Unseen, Flags=4, FontBBox=[0, -200, 500, 800], ItalicAngle=0,
        Ascent=800, Descent=-200, CapHeight=800, StemV=80,
    )  # fmt: skip
    glyphs = dictionary(
        Type=name.Font, Subtype=name.CIDFontType2, BaseFont=name.Unseen, CIDToGIDMap=name.Identity,
        CIDSystemInfo=dictionary(Registry="Adobe", Ordering="Identity", Supplement=0),
        FontDescriptor=pdf.make_indirect(descriptor), DW=int(1000 * WIDTH),
    )  # fmt: skip
    font = dictionary(
        Type=name.Font, Subtype=name.Type0, BaseFont=name.Unseen, Encoding=name("/Identity-H"),
        DescendantFonts=[pdf.make_indirect(glyphs)], ToUnicode=pdf.make_stream(_TO_UNICODE),
    )  # fmt: skip
    return pdf.make_indirect(font)
