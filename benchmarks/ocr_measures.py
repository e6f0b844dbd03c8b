"""What `ocr_consensus.py` measures with: error rates, other ways to combine readings, how well doubt finds errors."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from cascadevl.scoring.consensus import entropies
from cascadevl.scoring.lattice import build
from cascadevl.scoring.tokens import plain, tokenise

RESAMPLES = 1000
Numbers = Sequence[float] | np.ndarray


def flat(text: str) -> str:
    """Without markup and with single spaces: lines may end where they like."""
    return " ".join(plain(text).split())


def character_errors(said: str, true: str) -> float:
    """Edits per character of the truth, at most 1: what is made up beyond the page is not worse than nothing."""
    return min(1.0, Levenshtein.distance(flat(said), flat(true)) / len(flat(true)))


def word_errors(said: str, true: str) -> float:
    words = flat(true).split()
    return min(1.0, Levenshtein.distance(flat(said).split(), words) / len(words))


def medoid(texts: Sequence[str]) -> str:
    """The released method: the reading with the least entropy, on the texts as they are."""
    return texts[int(np.argmin(entropies(texts)))]


def majority(texts: Sequence[str]) -> str:
    """Our lattice with one vote for everybody."""
    backbone = int(np.argmin(entropies([flat(text) for text in texts])))
    columns = build([tokenise(text)[0] for text in texts], [1 / len(texts)] * len(texts), backbone)
    return "".join(column.gap + column.text for column in columns if column.text)


def rover(texts: Sequence[str]) -> str:
    """ROVER (Fiscus 1997) by frequency: words aligned one reading after the other, the first decides ties."""
    network: list[Counter[str]] = []
    for number, text in enumerate(texts):
        words = flat(text).split()
        spine = [next(iter(slot)) if len(slot) == 1 else max(slot, key=lambda word: slot[word]) for slot in network]
        merged: list[Counter[str]] = []
        for tag, start, end, first, last in _opcodes(spine, words):
            for at in range(start, end):
                merged.append(network[at])
                network[at][words[first + at - start] if tag in ("equal", "replace") else ""] += 1
            if tag == "insert":
                merged += [
                    Counter({"": number, word: 1}) if number else Counter({word: 1}) for word in words[first:last]
                ]
        network = merged
    return " ".join(filter(None, (max(slot, key=lambda word: slot[word]) for slot in network)))


def _opcodes(first: Sequence[str], second: Sequence[str]) -> Any:
    """Tuples, which rapidfuzz does not tell the types of."""
    return Levenshtein.opcodes(first, second).as_list()


def auprc(signal: Numbers, bad: Numbers) -> float:
    """Average precision; of pages with one signal the order does not matter."""
    order = np.argsort(-np.asarray(signal), kind="stable")
    marks, values = np.asarray(bad, dtype=float)[order], np.asarray(signal)[order]
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    found = np.cumsum(marks)[ends]
    if not len(found) or not found[-1]:
        return float("nan")
    recall = found / found[-1]
    return float(np.sum(np.diff(np.append(0, recall)) * found / (ends + 1)))


def f1(signal: Numbers, bad: Numbers, threshold: float) -> float:
    taken = np.asarray(signal) > threshold
    marks = np.asarray(bad)
    return float(2 * (taken & marks).sum() / max(1, taken.sum() + marks.sum()))


def rank_correlation(first: Numbers, second: Numbers) -> float:
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Numbers) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def interval(measure: Callable[[np.ndarray], float], num: int, seed: int = 0) -> list[float]:
    """The measure on all pages, and its 2.5th and 97.5th percentile over pages drawn with replacement."""
    rng = np.random.default_rng(seed)
    drawn = [measure(rng.integers(0, num, num)) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return [round(float(each), 4) for each in (measure(np.arange(num)), low, high)]


def gain_curve(signal: Numbers, errors: Numbers, costs: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Share of the cost that is routed, most doubtful first, and the share of all errors that goes with it."""
    order = np.argsort(-np.asarray(signal), kind="stable")
    cost, error = np.asarray(costs, dtype=float)[order], np.asarray(errors, dtype=float)[order]
    return np.append(0, np.cumsum(cost) / cost.sum()), np.append(0, np.cumsum(error) / max(error.sum(), 1e-12))


def line_errors(lines: Sequence[str], true: str) -> list[float]:
    """How many edits lie in each line; what a transcript lacks lies in the line before it."""
    said = [flat(line) for line in lines]
    owners = [at for at, line in enumerate(said) for _ in f"{line} "]
    found = [0.0] * len(lines)
    for tag, start, end, first, last in _opcodes(" ".join(said), flat(true)):
        if tag == "insert":
            found[owners[max(0, start - 1)]] += last - first
        elif tag != "equal":
            for at in range(start, end):
                found[owners[at]] += 1
    return found


def svg_plot(title: str, axes: tuple[str, str], curves: dict[str, tuple[Any, Any]], colours: Sequence[str]) -> str:
    """Lines on the unit square."""
    size, margin = 460, 60
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size + 2 * margin}" height="{size + 2 * margin}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{margin}" y="30" font-size="15">{title}</text>',
        f'<text x="{margin + size / 2}" y="{size + margin + 42}" text-anchor="middle">{axes[0]}</text>',
        f'<text transform="translate(16 {margin + size / 2}) rotate(-90)" text-anchor="middle">{axes[1]}</text>',
    ]
    for tick in range(0, 11, 2):
        x, y = margin + size * tick / 10, margin + size * (1 - tick / 10)
        out.append(f'<path d="M{x} {margin}V{margin + size}M{margin} {y}H{margin + size}" stroke="#ddd"/>')
        out.append(f'<text x="{x}" y="{margin + size + 18}" text-anchor="middle">{tick / 10}</text>')
        out.append(f'<text x="{margin - 8}" y="{y + 4}" text-anchor="end">{tick / 10}</text>')
    for at, ((name, (xs, ys)), colour) in enumerate(zip(curves.items(), colours, strict=False)):
        points = " ".join(f"{margin + size * x:.1f},{margin + size * (1 - y):.1f}" for x, y in zip(xs, ys, strict=True))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = margin + size - 20 - 20 * (len(curves) - 1 - at)
        out.append(f'<path d="M{margin + size - 210} {y - 4}h24" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<text x="{margin + size - 180}" y="{y}">{name}</text>')
    return "\n".join([*out, "</svg>\n"])
