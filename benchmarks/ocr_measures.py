"""What `ocr_consensus.py` measures with: error rates, other ways to combine readings, how well doubt finds errors."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
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


def precision_curve(signal: Numbers, bad: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision as more pages are taken, the most doubtful first."""
    marks = np.asarray(bad, dtype=float)[np.argsort(-np.asarray(signal), kind="stable")]
    found = np.cumsum(marks)
    return found / max(1.0, found[-1]), found / np.arange(1, len(marks) + 1)


Curves = dict[str, tuple[Any, Any]]
Plots = dict[tuple[str, str, str], Curves]
"""(Title, axis, axis) -> lines on the unit square."""
COLOURS = ("#0057d9", "#888", "#bbb", "#c2410c")
SIZE, MARGIN = 460, 60


def svg_plots(plots: Plots) -> str:
    """Side by side."""
    width, height = len(plots) * (SIZE + 2 * MARGIN), SIZE + 2 * MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for at, ((title, across, up), curves) in enumerate(plots.items()):
        out += [f'<g transform="translate({at * (SIZE + 2 * MARGIN)} 0)">', *_plot(title, across, up, curves), "</g>"]
    return "\n".join([*out, "</svg>\n"])


def _plot(title: str, across: str, up: str, curves: Curves) -> list[str]:
    out = [
        f'<text x="{MARGIN}" y="30" font-size="15">{title}</text>',
        f'<text x="{MARGIN + SIZE / 2}" y="{SIZE + MARGIN + 42}" text-anchor="middle">{across}</text>',
        f'<text transform="translate(16 {MARGIN + SIZE / 2}) rotate(-90)" text-anchor="middle">{up}</text>',
    ]
    for tick in range(0, 11, 2):
        x, y = MARGIN + SIZE * tick / 10, MARGIN + SIZE * (1 - tick / 10)
        out.append(f'<path d="M{x} {MARGIN}V{MARGIN + SIZE}M{MARGIN} {y}H{MARGIN + SIZE}" stroke="#ddd"/>')
        out.append(f'<text x="{x}" y="{MARGIN + SIZE + 18}" text-anchor="middle">{tick / 10}</text>')
        out.append(f'<text x="{MARGIN - 8}" y="{y + 4}" text-anchor="end">{tick / 10}</text>')
    for at, ((name, (xs, ys)), colour) in enumerate(zip(curves.items(), COLOURS, strict=False)):
        points = " ".join(f"{MARGIN + SIZE * x:.1f},{MARGIN + SIZE * (1 - y):.1f}" for x, y in zip(xs, ys, strict=True))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = MARGIN + SIZE // 2, MARGIN + SIZE - 20 - 20 * (len(curves) - 1 - at)
        out.append(f'<path d="M{x} {y - 4}h24" stroke="{colour}" stroke-width="3"/>')
        out.append(f'<text x="{x + 30}" y="{y}">{name}</text>')
    return out


def to_png(svg: Path) -> None:
    """Beside it, drawn by chromium where there is one."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return
    width, height = re.findall(r'(?:width|height)="(\d+)"', svg.read_text())[:2]
    command = [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}"]
    subprocess.run(
        [*command, f"--screenshot={svg.with_suffix('.png').resolve()}", svg.resolve().as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
