"""A folder of pages becomes transcripts: read, compare, hand the worst to an expert, report.

Every page has its own files in the output folder, each written in one step and the JSON last: a page is finished if
its JSON fits the picture and the readers. Stopped at any moment, the next start goes on with what is missing.
"""

import contextlib
import json
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from cascadevl.apps.ocr_consensus.hosted import image_hash
from cascadevl.apps.ocr_consensus.measure import measure
from cascadevl.apps.ocr_consensus.pages import Source, open_page
from cascadevl.apps.ocr_consensus.pdf import join, require_pikepdf, write_page
from cascadevl.apps.ocr_consensus.readers import Reader, Reading
from cascadevl.apps.ocr_consensus.report import index_html, page_html
from cascadevl.apps.ocr_consensus.review import Expert, Review, review
from cascadevl.apps.ocr_consensus.transcript import SHOWN, Transcript
from cascadevl.apps.ocr_consensus.vote import TRUST, compare, with_expert
from cascadevl.core.errors import ConfigError
from cascadevl.core.files import canonical_json, content_hash, writable_folder, write_json, write_text
from cascadevl.scoring.lattice import rapidfuzz_levenshtein

LOST = 0.3
"""If not even two readings are nearer to each other, a page is taken to lie the wrong way."""
CLEARLY = 0.7
"""A page stays as it lies unless turning it brings them together to this part of their distance."""
FORMAT = 3
"""Of the files of a page: raised when they change, so that older ones are made again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """When a page counts as doubtful, and how many of those an expert may see."""

    max_error: float = 0.04
    """Largest expected error of a page that is fine; on the development pages of `benchmarks/ocr_consensus.py` it finds
    those with more than 5 % errors best, by F1."""
    max_doubt: float = 0.1
    """How far the two nearest readings of a page that is fine may differ."""
    max_number_doubt: float = 0.15
    """Largest doubt of a number on a page that is fine: one against two of the same trust is 0.2 or more."""
    expert_share: float = 0.1
    """Part of all pages that the expert may see, the most doubtful first."""

    bad_error: float = 0.05
    """Error rate above which a page whose truth is known is bad; to calibrate `max_doubt`."""

    def __post_init__(self) -> None:
        for name in ("max_error", "max_doubt", "max_number_doubt", "expert_share", "bad_error"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")

    def doubtful(self, row: Mapping[str, Any]) -> bool:
        return (
            "error" in row
            or row["expected_error"] > self.max_error
            or row["unconfirmed"] > self.max_doubt
            or row["number_doubt"] > self.max_number_doubt
        )


@dataclass(kw_only=True, slots=True)
class Desk:
    """The readers of one worker: they are not shared between threads."""

    readers: Sequence[Reader]
    expert: Expert | None = None
    close: Callable[[], object] = lambda: None
    """Ends what the readers started."""


@dataclass(kw_only=True, slots=True)
class Run:
    """One call of the program. `desks` decide how many pages are read at once."""

    out: Path
    desks: Sequence[Desk]
    limits: Limits = field(default_factory=Limits)
    truth: Path | None = None
    """Folder of true texts, NAME.txt: pages that have one are measured, and the best threshold is reported."""
    pdf: bool = False
    """Also a searchable PDF of every file."""
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    """Told after every page: what is being done, how many are done, how many there are."""

    def __call__(self, sources: Sequence[Source]) -> dict[str, Any]:
        """The report, which is written as well: report.json, index.html."""
        started = time.perf_counter()
        rapidfuzz_levenshtein()
        if self.pdf:
            require_pikepdf()
        writable_folder(self.out)
        with _alone(self.out), contextlib.ExitStack() as ending:
            for desk in self.desks:
                ending.callback(desk.close)
            rows = list(self._each("reading", sources, self._read_page))
            if expert := self.desks[0].expert:
                rows = self._review(sources, rows, expert)
            report = self._report(rows, time.perf_counter() - started)
            if self.pdf:
                self._join_pdfs(sources)
            write_json(self.out / "report.json", report)
            summary = {name: report[name] for name in ("num_pages", "num_doubtful", "num_failed", "num_reviewed")}
            write_text(self.out / "index.html", index_html(report["pages"], _in_words(summary)))
        return report

    def _each(
        self, what: str, sources: Sequence[Source], do: Callable[[Source, Desk], dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """In order, as many at once as there are desks."""
        free: queue.SimpleQueue[Desk] = queue.SimpleQueue()
        for desk in self.desks:
            free.put(desk)

        def work(source: Source) -> dict[str, Any]:
            desk = free.get()
            try:
                return attempt(do, source, desk)
            finally:
                free.put(desk)

        with ThreadPoolExecutor(len(self.desks)) as pool:
            for done, row in enumerate(pool.map(work, sources), start=1):
                self.progress(what, done, len(sources))
                yield row

    def read(self, source: Source, desk: Desk) -> dict[str, Any]:
        """One page, for those who share out pages in their own way; a later call of the run finds it finished."""
        writable_folder(self.out)
        return attempt(self._read_page, source, desk)

    def _read_page(self, source: Source, desk: Desk) -> dict[str, Any]:
        image = open_page(source)
        made_of = self._made_of(image, desk)
        finished = self._finished(source, made_of)
        return _row(finished) if finished else self._write(source, image, desk, made_of)

    def _review(self, sources: Sequence[Source], rows: list[dict[str, Any]], expert: Expert) -> list[dict[str, Any]]:
        """The most doubtful pages go to the expert, in whole pages of its budget; those it saw count."""
        budget = int(self.limits.expert_share * len(rows) + 1e-9)
        worst = sorted(
            (at for at, row in enumerate(rows) if "error" not in row and self._before(row)),
            key=lambda at: (-rows[at]["first_expected_error"], -rows[at]["first_doubt"], rows[at]["name"]),
        )[:budget]
        chosen = [at for at in worst if rows[at]["expert"] != expert.name]
        reviewed = self._each("reviewing", [sources[at] for at in chosen], self._review_page)
        for at, row in zip(chosen, reviewed, strict=True):
            rows[at] = row
        return rows

    def _before(self, row: Mapping[str, Any]) -> bool:
        """Was the page doubtful before any expert saw it?"""
        return self.limits.doubtful(
            {name: row[f"first_{name}"] for name in ("expected_error", "unconfirmed", "number_doubt")}
        )

    def _review_page(self, source: Source, desk: Desk) -> dict[str, Any]:
        image = open_page(source)
        return self._write(source, image, desk, self._made_of(image, desk), expert=desk.expert)

    def _write(
        self, source: Source, image: Image.Image, desk: Desk, made_of: str, expert: Expert | None = None
    ) -> dict[str, Any]:
        """Read, compare, write. The JSON goes first and comes last: it says that all the rest is there."""
        started = time.perf_counter()
        turned, image, transcript, failed = read_upright(desk.readers, image)
        first, asked = transcript.quality, None
        if expert is not None:
            try:
                asked = review(expert, image, transcript)
                transcript = with_expert(transcript, expert.name, asked.reading)
            except Exception as problem:  # the border of a worker: recorded, the consensus stands
                failed[f"{expert.name} (expert)"] = str(problem)
        facts = {
            "name": source.name,
            "path": str(source.path),
            "page": source.page,
            "made_of": made_of,
            "first_expected_error": round(first.expected_error, 4),
            "first_unconfirmed": round(first.unconfirmed, 4),
            "first_doubt": round(first.doubt, 4),
            "first_number_doubt": round(first.number_doubt, 4),
            "expert": expert.name if expert and asked else None,
            "shown_to_expert": _shown(asked),
            "turned": turned,
            "failed": failed,
            "seconds": round(time.perf_counter() - started, 3),
            **transcript.facts(),
        }
        name = source.name
        (self.out / f"{name}.json").unlink(missing_ok=True)
        write_text(self.out / f"{name}.txt", transcript.text)
        write_text(self.out / f"{name}.md", transcript.markdown())
        write_text(self.out / f"{name}.hocr", transcript.hocr(source.path.name))
        write_text(self.out / f"{name}.html", page_html(name, image, facts, shown=SHOWN))
        if self.pdf:
            write_page(self._page_pdf(source), image, facts)
        write_json(self.out / f"{name}.json", facts)
        return _row(facts)

    def _page_pdf(self, source: Source) -> Path:
        return self.out / ".pages" / f"{source.name}.pdf"

    def _join_pdfs(self, sources: Sequence[Source]) -> None:
        """One for every file, of the pages that could be read."""
        for _, group in groupby(sources, key=lambda source: source.path):
            pages = list(group)
            made = [path for path in map(self._page_pdf, pages) if path.exists()]
            if made:
                join(self.out / f"{pages[0].name}.pdf", made)

    def _made_of(self, image: Image.Image, desk: Desk) -> str:
        """Changes with the picture, the readers, their versions and their order, and the form of the files."""
        readers = [[reader.name, reader.version] for reader in desk.readers]
        return content_hash(canonical_json([FORMAT, image_hash(image), readers, TRUST]))

    def _finished(self, source: Source, made_of: str) -> dict[str, Any] | None:
        try:
            facts = json.loads((self.out / f"{source.name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        # A page that a reader failed on is tried again: the next time it may not.
        fits = isinstance(facts, dict) and facts.get("made_of") == made_of and not facts.get("failed")
        return facts if fits and (not self.pdf or self._page_pdf(source).exists()) else None

    def _report(self, rows: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
        for row in rows:
            row["doubtful"] = self.limits.doubtful(row)
        calibration = measure(rows, self.out, self.truth, self.limits.bad_error) if self.truth else None
        worst_first = sorted(rows, key=_worst_first)
        return {
            "num_pages": len(rows),
            "num_doubtful": sum(row["doubtful"] for row in rows),
            "num_failed": sum("error" in row for row in rows),
            "num_reviewed": sum(row.get("expert") is not None for row in rows),
            "max_error": self.limits.max_error,
            "max_doubt": self.limits.max_doubt,
            "max_number_doubt": self.limits.max_number_doubt,
            "calibration": calibration,
            "readers": [{"name": each.name, "version": each.version} for each in self.desks[0].readers],
            "seconds": round(seconds, 3),
            "pages": worst_first,
        }


def attempt(do: Callable[[Source, Desk], dict[str, Any]], source: Source, desk: Desk) -> dict[str, Any]:
    try:
        return do(source, desk)
    except Exception as problem:  # the border of one page: recorded, counted, and the next one starts
        return {"name": source.name, "path": str(source.path), "page": source.page, "error": str(problem)}


def read_all(readers: Sequence[Reader], image: Image.Image) -> tuple[list[str], list[Reading], dict[str, str]]:
    """Names and readings of those who could read, and what happened to the others."""
    names: list[str] = []
    readings: list[Reading] = []
    failed: dict[str, str] = {}
    for reader in readers:
        try:
            readings.append(reader.read(image))
            names.append(reader.name)
        except Exception as problem:  # the border of a worker: recorded, the other readers go on
            failed[reader.name] = str(problem) or repr(problem)
    return names, readings, failed


def read_upright(readers: Sequence[Reader], image: Image.Image) -> tuple[int, Image.Image, Transcript, dict[str, str]]:
    """By how many degrees the page was turned, the page so, what it came to, and who failed.

    Readings that are right agree, so it is they who tell which way up a page is; one on which they agree well enough
    is not turned.
    """
    best: tuple[int, Image.Image, Transcript, dict[str, str]] | None = None
    for degrees in (0, 180, 90, 270):
        page = image.rotate(degrees, expand=True) if degrees else image
        names, readings, failed = read_all(readers, page)
        if not readings:
            raise ConfigError(f"No reader could read the page: {failed}.")
        found = degrees, page, compare(page, names, readings), failed
        if best is None or found[2].quality.unconfirmed < CLEARLY * best[2].quality.unconfirmed:
            best = found
        if best[2].quality.unconfirmed <= LOST or len(readings) == 1:
            break
    assert best is not None
    return best


def _shown(asked: Review | None) -> dict[str, Any] | None:
    return asked and {"num_lines": asked.num_lines, "share": round(asked.share, 4)}


def _worst_first(row: Mapping[str, Any]) -> tuple[bool, float, float, str]:
    return "error" not in row, -row.get("expected_error", 1.0), -row.get("doubt", 1.0), row["name"]


def _row(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A page in report.json."""
    tokens = [token for line in facts["lines"] for token in line["tokens"]]
    return {
        **{
            name: facts[name]
            for name in (
                "name",
                "path",
                "page",
                "turned",
                "expected_error",
                "unconfirmed",
                "doubt",
                "number_doubt",
                "raw_doubt",
                "first_expected_error",
                "first_unconfirmed",
                "first_doubt",
                "first_number_doubt",
                "expert",
                "shown_to_expert",
                "failed",
                "seconds",
            )
        },
        "num_doubts": sum(token["doubt"] >= SHOWN for token in tokens),
        "num_readers": len(facts["readers"]),
    }


def _in_words(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("num_"): value for name, value in summary.items()}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One run at a time in a folder; what a killed one left half-written is removed."""
    with (folder / ".lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows: two runs at once are the user's to avoid
            pass
        except OSError:
            raise ConfigError(f"Another run writes to {str(folder)!r}: wait for it, or choose another --out.") from None
        for torn in folder.glob(".*.????????"):
            torn.unlink(missing_ok=True)
        yield
