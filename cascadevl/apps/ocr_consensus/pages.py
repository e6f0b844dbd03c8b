"""Which pages there are: pictures, folders of them, frames of a TIFF, pages of a PDF."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from cascadevl.core.errors import MediaError, MissingExtra
from cascadevl.core.files import content_hash
from cascadevl.preprocessing.image import DEFAULT_LIMITS, open_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pdf")
PDF_DPI = 200
"""At which pages of a PDF are rendered."""

LARGEST_PX = 5000
"""Longer side of a page that is read: A4 at 430 dpi. No reader gains from more, and some never end."""

_PDFIUM = threading.Lock()


@dataclass(frozen=True, slots=True)
class Source:
    """One page: a file, and which of its pages, from 0."""

    path: Path
    page: int
    name: str
    """Of the files that are written for it; no two pages share one."""


def find_pages(paths: Sequence[Path]) -> list[Source]:
    """All pages in the given order; folders are walked. Raises MediaError for a path that leads nowhere."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
            if not inside:
                raise MediaError(f"{str(path)!r} holds no pages. Expected files named {', '.join(SUFFIXES)}.")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise MediaError(f"No such page: {str(path)!r}. Expected a picture, a PDF, or a folder of them.")
    return _named([source for file in dict.fromkeys(files) for source in _pages_of(file)])


def open_page(source: Source) -> Image.Image:
    """RGB, at most `LARGEST_PX` wide and high. Raises MediaError."""
    image = _opened_page(source)
    if max(image.size) > LARGEST_PX:
        image = image.copy()
        image.thumbnail((LARGEST_PX, LARGEST_PX))
    return image


def _opened_page(source: Source) -> Image.Image:
    if source.path.suffix.lower() == ".pdf":
        return _render(source)
    if source.page == 0:
        return open_image(source.path)
    with Image.open(source.path) as file:
        file.seek(source.page)
        return open_image(file.copy())


def _pages_of(file: Path) -> list[Source]:
    return [Source(file, page, file.stem if page == 0 else f"{file.stem}-{page + 1}") for page in range(_count(file))]


def _count(file: Path) -> int:
    """Files that cannot be read count as one page, which then says why."""
    suffix = file.suffix.lower()
    if suffix == ".pdf":
        try:
            with _opened(file) as pdf:
                return len(pdf)
        except MediaError:
            return 1
    if suffix in (".tif", ".tiff"):
        try:
            with Image.open(file) as picture:
                return getattr(picture, "n_frames", 1)
        except Exception:  # hostile bytes lead decoders to many kinds; open_page tells the user which
            return 1
    return 1


def _named(sources: list[Source]) -> list[Source]:
    """Pages whose files have the same stem get a hash of the path behind it."""
    counts = Counter(source.name for source in sources)
    return [
        replace(source, name=f"{source.name}-{content_hash(str(source.path))[:6]}")
        if counts[source.name] > 1
        else source
        for source in sources
    ]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A PDF, one at a time: PDFium may not be used by two threads at once."""
    try:
        import pypdfium2  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra(f"{path} is a PDF: reading it needs pypdfium2: pip install pypdfium2.") from error
    with _PDFIUM:
        try:
            pdf = pypdfium2.PdfDocument(path)
        except pypdfium2.PdfiumError as error:
            raise MediaError(f"{path} cannot be opened: {error} Remove its password, or save it again.") from error
        try:
            yield pdf
        finally:
            pdf.close()


def _render(source: Source) -> Image.Image:
    with _opened(source.path) as pdf:
        page = pdf[source.page]
        scale = PDF_DPI / 72
        width_px, height_px = (side * scale for side in page.get_size())
        if width_px * height_px > DEFAULT_LIMITS.max_pixels:
            size = f"{width_px:.0f}×{height_px:.0f}"
            raise MediaError(f"Page {source.page + 1} of {source.path} would have {size} pixels: split it.")
        return page.render(scale=scale).to_pil().convert("RGB")
