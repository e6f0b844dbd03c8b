"""Who reads a page: one small protocol, and the readers that are programs or packages.

None of them is needed, each is used where it is installed. `spec` is how the command line names a reader.
"""

import csv
import functools
import importlib.metadata
import importlib.util
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from cascadevl.core.errors import ConfigError, MissingExtra

PixelBox = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where some characters of a reading stand on the page, as far as the reader tells."""

    start: int
    end: int
    box: PixelBox
    confidence: float | None = None
    """The reader's own, 0 to 1; not comparable between readers."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader found on a page."""

    text: str
    spans: tuple[Span, ...] = ()
    """Words or lines, in the order of the text."""


class Reader(Protocol):
    """Reads an upright RGB picture. May raise anything: a failure is recorded, and the other readers go on."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Changes whenever the same picture may be read differently: readings are kept under it."""
        ...

    def read(self, image: Image.Image) -> Reading: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Tesseract:
    """The program `tesseract`, which tells words, boxes and confidences."""

    language: str = "eng"
    """Its language data, joined by + for several: "eng+deu"."""
    layout: int = 3
    """Its page segmentation mode; 3 finds columns and blocks by itself."""
    timeout_s: float = 120.0
    name: str = "tesseract"

    @property
    def version(self) -> str:
        return f"{_first_line('tesseract', '--version')} {self.language} {self.layout}"

    def read(self, image: Image.Image) -> Reading:
        command = ["tesseract", "stdin", "stdout", "-l", self.language, "--psm", str(self.layout), "tsv"]
        return read_tsv(_run(command, _encoded(image, "PNG"), self.timeout_s))


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A program that takes a PNM picture and prints text: gocr, ocrad. No boxes."""

    name: str
    command: tuple[str, ...]
    timeout_s: float = 60.0

    @property
    def version(self) -> str:
        return f"{_first_line(self.name, '--version')} {' '.join(self.command[1:])}"

    def read(self, image: Image.Image) -> Reading:
        return Reading(_run(self.command, _encoded(image.convert("L"), "PPM"), self.timeout_s))


@dataclass(kw_only=True, slots=True)
class RapidOcr:
    """The package rapidocr: PP-OCR's detector and recogniser in ONNX. Lines with boxes."""

    name: str = "rapidocr"
    engine: Any = None

    @property
    def version(self) -> str:
        return importlib.metadata.version("rapidocr")

    def read(self, image: Image.Image) -> Reading:
        import numpy as np

        if self.engine is None:
            from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports]

            self.engine = RapidOCR(params={"Global.log_level": "warning"})
        found = self.engine(np.asarray(image)[:, :, ::-1])
        if found.txts is None:
            return Reading("")
        lines = [
            (text, (*box.min(0).tolist(), *box.max(0).tolist()), float(confidence))
            for text, box, confidence in zip(found.txts, found.boxes, found.scores, strict=True)
        ]
        return join_lines(lines)


def join_lines(found: Sequence[tuple[str, PixelBox, float | None]]) -> Reading:
    """A reading of line boxes: those of about one height become one line, left to right, then downwards."""
    rows: list[list[tuple[str, PixelBox, float | None]]] = []
    for line in sorted(found, key=lambda line: line[1][1] + line[1][3]):
        _, (_, top, _, bottom), _ = line
        previous = rows[-1][-1][1] if rows else None
        middle = (top + bottom) / 2
        if previous and previous[1] < middle < previous[3]:
            rows[-1].append(line)
        else:
            rows.append([line])
    text, spans = "", []
    for row in rows:
        text += "\n" if text else ""
        for at, (line, box, confidence) in enumerate(sorted(row, key=lambda line: line[1][0])):
            text += " " if at else ""
            spans.append(Span(len(text), len(text) + len(line), box, confidence))
            text += line
    return Reading(text, tuple(spans))


def read_tsv(tsv: str) -> Reading:
    """Tesseract's table: a row per word (level 5), lines and paragraphs told by numbers."""
    text, spans, line = "", [], ("", "", "", "")
    for row in csv.DictReader(io.StringIO(tsv), delimiter="\t", quoting=csv.QUOTE_NONE):
        if row["level"] != "5" or not (row["text"] or "").strip():
            continue
        here = row["page_num"], row["block_num"], row["par_num"], row["line_num"]
        if text:
            text += " " if here == line else "\n" if here[:3] == line[:3] else "\n\n"
        line = here
        left, top, width, height = (int(row[name]) for name in ("left", "top", "width", "height"))
        box = (left, top, left + width, top + height)
        spans.append(Span(len(text), len(text) + len(row["text"]), box, max(float(row["conf"]), 0.0) / 100))
        text += row["text"]
    return Reading(text, tuple(spans))


READERS: dict[str, Callable[[], Reader]] = {
    "tesseract": Tesseract,
    "rapidocr": RapidOcr,
    "gocr": functools.partial(Program, name="gocr", command=("gocr", "-f", "UTF8", "-")),
    "ocrad": functools.partial(Program, name="ocrad", command=("ocrad", "-F", "utf8", "-")),
}
"""Name -> reader. Everything else that the command line names is a model or an address (`models.py`)."""

PACKAGES = {
    "tesseract": "apt install tesseract-ocr",
    "rapidocr": "pip install rapidocr onnxruntime",
    "gocr": "apt install gocr",
    "ocrad": "apt install ocrad",
}
"""Reader -> what brings it."""


TRUST = {"gocr": 0.3, "ocrad": 0.3}
"""Reader -> how far it is trusted; all others 1. Two weak programs that find nothing on a grey page agree well:
together they must weigh less than one that reads it."""


def is_installed(name: str) -> bool:
    if name == "rapidocr":
        return all(importlib.util.find_spec(package) for package in ("rapidocr", "onnxruntime"))
    return shutil.which(name) is not None


def installed() -> list[str]:
    """The readers of the table that are here, the strongest first."""
    return [name for name in READERS if is_installed(name)]


def check_installed(name: str) -> None:
    if not is_installed(name):
        there = ", ".join(installed()) or "none"
        raise MissingExtra(f"The reader {name!r} is not installed: {PACKAGES[name]}. Installed are: {there}.")


def check_language(language: str) -> None:
    """Tesseract's own message for missing data comes once per page; ours comes once."""
    known = _run(("tesseract", "--list-langs"), b"", 20).split("\n")[1:]
    for each in language.split("+"):
        if each not in known:
            raise ConfigError(
                f"tesseract has no data for the language {each!r}: apt install tesseract-ocr-{each}. "
                f"It has {', '.join(filter(None, known))}."
            )


class ReaderFailed(Exception):
    """A reader that crashed, was killed, or printed something that is no reading."""


def _encoded(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **({"compress_level": 1} if format == "PNG" else {}))
    return buffer.getvalue()


def _run(command: Sequence[str], data: bytes, timeout_s: float) -> str:
    """What a program prints. One thread each, since pages are read in parallel."""
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    try:
        ran = subprocess.run(command, input=data, capture_output=True, timeout=timeout_s, env=environment)
    except subprocess.TimeoutExpired:
        raise ReaderFailed(f"{command[0]} was killed after {timeout_s:g} s") from None
    if ran.returncode:
        last = ran.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ReaderFailed(f"{command[0]} ended with {ran.returncode}: {' '.join(last) or 'no message'}")
    return ran.stdout.decode(errors="replace")


@functools.cache
def _first_line(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return ((ran.stdout or ran.stderr).strip().splitlines() or ["unknown"])[0]
