"""Readers kept at arm's length: each in a process of its own that may hang or die, its readings kept on disk."""

import json
import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image

from cascadevl.apps.ocr_consensus.lines import Corners
from cascadevl.apps.ocr_consensus.readers import Reader, ReaderFailed, Reading, Span
from cascadevl.core.errors import UserError
from cascadevl.core.files import content_hash, write_json


class Hosted:
    """A reader in a process of its own, started at the first page; killed when it takes too long, started anew."""

    def __init__(self, name: str, version: str, make: Callable[[], object], *, timeout_s: float = 300.0) -> None:
        self.name = name
        self.version = version
        self.make = make
        self.timeout_s = timeout_s
        self._process: Any = None
        self._pipe: Connection | None = None

    def read(self, image: Image.Image) -> Reading:
        return self._call("read", image)

    def read_lines(self, image: Image.Image, lines: Sequence[Corners]) -> Reading:
        return self._call("read_lines", image, lines)

    def review(self, image: Image.Image, candidates: list[str], consensus: str) -> Reading:
        return self._call("review", image, candidates, consensus)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _call(self, method: str, *arguments: Any) -> Reading:
        if self._process is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send((method, arguments))
        except OSError:
            self.close()
            raise ReaderFailed(f"{self.name} died") from None
        return self._answer()

    def _start(self) -> None:
        # A fresh interpreter: a fork of one that runs threads and torch may hang.
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self.make), daemon=True)
        self._process.start()
        other.close()
        self._answer()

    def _answer(self) -> Any:
        assert self._pipe is not None
        try:
            if not self._pipe.poll(self.timeout_s):
                self.close()
                raise ReaderFailed(f"{self.name} was killed after {self.timeout_s:g} s")
            answer, problem = self._pipe.recv()
        except (EOFError, ConnectionError):
            code = self._exit_code()
            self.close()
            raise ReaderFailed(f"{self.name} died with exit code {code}") from None
        if problem is not None:
            raise problem
        return answer

    def _exit_code(self) -> int | None:
        self._process.join(5)
        return self._process.exitcode


def _serve(pipe: Connection, make: Callable[[], object]) -> None:
    """The other process: says that it is ready, then reads until the pipe is closed."""
    try:
        reader: Any = make()
        pipe.send((None, None))
    except Exception as problem:  # the border of a worker: told to the one who asked
        pipe.send((None, _told(problem)))
        return
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = getattr(reader, method)(*arguments), None
        except Exception as problem:  # as above
            answer = None, _told(problem)
        pipe.send(answer)


def _told(problem: Exception) -> Exception:
    """Something that can be sent: an exception of a package may not be."""
    if isinstance(problem, UserError):
        return type(problem)(str(problem))
    return ReaderFailed("".join(traceback.format_exception_only(problem)).strip())


@dataclass(frozen=True, slots=True)
class Kept:
    """A reader whose readings are kept by picture and version: a page is read once, whatever is done with it later."""

    reader: Reader
    folder: Path

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def version(self) -> str:
        return self.reader.version

    def read(self, image: Image.Image) -> Reading:
        path = self.path(image)
        kept = read_kept(path)
        if kept is None:
            kept = self.reader.read(image)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"reader": self.name, "version": self.version, **asdict(kept)})
        return kept

    def path(self, image: Image.Image) -> Path:
        return self.folder / image_hash(image) / f"{content_hash(f'{self.name} {self.version}')}.json"


def read_kept(path: Path) -> Reading | None:
    """None where there is none, or none that can be used."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Reading(raw["text"], tuple(_span(each) for each in raw["spans"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _span(raw: dict[str, Any]) -> Span:
    corners = raw["corners"]
    return Span(raw["start"], raw["end"], tuple(raw["box"]), raw["confidence"], tuple(corners) if corners else None)


def image_hash(image: Image.Image) -> str:
    """Of the pixels: the same page in another file is the same page."""
    return content_hash(f"{image.mode} {image.size} ".encode() + image.tobytes())
