"""Which signal finds pages that went wrong? Candidates, how one is chosen on the development part, and how it fares.

The choice is a regression of the logarithm of a page's error on logarithms of what is known about the page, judged by
cross-validation: with few bad pages that says more than how a few of them rank. Its coefficients are those of
`cascadevl/scoring/expectation.py`, which is the signal of the product.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ocr_measures import auprc, character_errors, f1, flat, interval, rank_correlation
from ocr_pages import Page

from cascadevl.apps.ocr_consensus.readers import Reading
from cascadevl.apps.ocr_consensus.vote import compare
from cascadevl.scoring.consensus import PageQuality, distance
from cascadevl.scoring.expectation import FLOOR
from cascadevl.scoring.threshold import calibrate

BEST = "rapidocr"
"""The best single reader of the development part."""
BAD = (0.02, 0.05, 0.1, 0.2)
"""Error rates above which a page is bad."""
CHOSEN = "expected error"
"""On the development part, before the test part was looked at with it."""
FOLDS, SHUFFLES, RIDGE = 8, 10, 0.5


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

    @property
    def error(self) -> float:
        return character_errors(self.text, self.page.text)


def consent(page: Page, readings: dict[str, Reading], members: Sequence[str]) -> Read:
    there = [name for name in members if name in readings]
    transcript = compare(page.image, there, [readings[name] for name in there])
    return Read(
        page=page, readings=readings, quality=transcript.quality, text=transcript.text, voters=transcript.readers
    )


def confidence(reading: Reading) -> float:
    """A reader's own; 0 where it found nothing."""
    return reading.confidence or 0.0


def _own(name: str) -> Callable[[Read], float]:
    return lambda read: 1 - confidence(read.readings[name]) if name in read.readings else 1.0


def _token_doubt(read: Read) -> float:
    """The mean doubt of the characters that were handed out or left out."""
    if len(read.voters) < 2:
        return 1.0
    columns = read.quality.columns
    sizes = [max(len(each.text) for each in column.candidates) or 1 for column in columns]
    return sum(size * column.doubt for size, column in zip(sizes, columns, strict=True)) / max(1, sum(sizes))


def _apart(read: Read) -> list[float]:
    """How far the readings are from the consensus, the nearest first."""
    return sorted(distance(flat(read.text), flat(read.readings[name].text)) for name in read.voters)


def _numbers_doubted(read: Read) -> float:
    numbers = [column.doubt > 0 for column in read.quality.columns if column.kind == "number"]
    return sum(numbers) / len(numbers) if numbers else 0.0


def _unequal_lengths(read: Read) -> float:
    lengths = [len(flat(read.readings[name].text)) for name in read.voters]
    return 1 - min(lengths) / max(1, *lengths)


SIGNALS: dict[str, Callable[[Read], float]] = {
    "doubt": lambda read: read.quality.doubt,
    "doubt of tokens": _token_doubt,
    "unconfirmed": lambda read: read.quality.unconfirmed,
    "nearest to the text": lambda read: apart[1] if len(apart := _apart(read)) > 1 else 1.0,
    "median to the text": lambda read: float(np.median(apart)) if len(apart := _apart(read)) > 1 else 1.0,
    "own confidence": _own(BEST),
    "confidence of easyocr": _own("easyocr"),
    "confidence of clean:tesseract": _own("clean:tesseract"),
    "numbers in doubt": _numbers_doubted,
    "unequal lengths": _unequal_lengths,
    "length": lambda read: float(len(flat(read.text))),
}
"""How bad a page is taken to be, by one figure."""
COMBINED: dict[str, Callable[[Read], float]] = {
    "expected error": lambda read: read.quality.expected_error,
    "unconfirmed × own confidence": lambda read: (read.quality.unconfirmed * SIGNALS["own confidence"](read)) ** 0.5,
}


def fits(dev: Sequence[Read], most: int = 3) -> list[dict[str, Any]]:
    """All sets of up to `most` figures: squared error of the logarithm of a page's error, on pages left out."""
    logs = {name: np.log([of(read) + FLOOR for read in dev]) for name, of in SIGNALS.items()}
    true = np.log([read.error + FLOOR for read in dev])
    found = []
    for names in itertools.chain(*(itertools.combinations(SIGNALS, num) for num in range(1, most + 1))):
        table = np.stack([np.ones(len(true)), *(logs[name] for name in names)], 1)
        losses = []
        for shuffle in range(SHUFFLES):
            fold = np.random.default_rng(shuffle).permutation(len(true)) % FOLDS
            for held in range(FOLDS):
                weights = _ridge(table[fold != held], true[fold != held])
                losses += list((table[fold == held] @ weights - true[fold == held]) ** 2)
        weights = _ridge(table, true)
        found.append(
            {
                "signals": names,
                "squared error": round(float(np.mean(losses)), 4),
                "factor": round(float(np.exp(weights[0])), 3),
                "powers": [round(float(each), 3) for each in weights[1:]],
            }
        )
    return sorted(found, key=lambda each: each["squared error"])


def _ridge(table: np.ndarray, true: np.ndarray) -> np.ndarray:
    weak = RIDGE * np.diag([0.0] + [1.0] * (table.shape[1] - 1))
    return np.linalg.solve(table.T @ table + weak, table.T @ true)


def detection(
    dev: Sequence[Read], test: Sequence[Read], signal: str, of: Callable[[Read], str], bad_error: float
) -> dict[str, Any]:
    """Bad pages found by our signal and by the best reader's confidence; thresholds of F1 from the development part."""
    signals = (SIGNALS | COMBINED)[signal], SIGNALS["own confidence"]

    def columns(reads: Sequence[Read]) -> tuple[np.ndarray, ...]:
        bad = [character_errors(of(read), read.page.text) > bad_error for read in reads]
        return np.array(bad), *(np.array([each(read) for read in reads]) for each in signals)

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


def over_all_thresholds(reads: Sequence[Read], signal: str, of: Callable[[Read], str]) -> dict[str, Any]:
    """Our signal less the best reader's confidence: mean AUPRC of all degrees of badness, and rank correlation."""
    errors = np.array([character_errors(of(read), read.page.text) for read in reads])
    ours, own = (
        np.array([each(read) for read in reads]) for each in ((SIGNALS | COMBINED)[signal], SIGNALS["own confidence"])
    )

    def mean(signal: np.ndarray, at: np.ndarray) -> float:
        return float(np.nanmean([auprc(signal[at], errors[at] > bad) for bad in BAD]))

    return {
        "mean auprc difference": interval(lambda at: mean(ours, at) - mean(own, at), len(reads)),
        "rank correlation difference": interval(
            lambda at: rank_correlation(ours[at], errors[at]) - rank_correlation(own[at], errors[at]), len(reads)
        ),
    }


def every_signal(reads: Sequence[Read]) -> dict[str, Any]:
    errors = np.array([read.error for read in reads])
    found = {}
    for name, of in (SIGNALS | COMBINED).items():
        values = [of(read) for read in reads]
        found[name] = {
            "rank correlation": round(rank_correlation(values, errors), 3),
            **{f"auprc, error > {bad}": round(auprc(values, errors > bad), 3) for bad in BAD},
        }
    return found
