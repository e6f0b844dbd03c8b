"""Scores of short answers: exact, ANLS, relaxed accuracy, character errors."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "−": "-", "‐": "-", "‑": "-"})


def normalise(text: str, *, fold_case: bool = False) -> str:
    """One spelling of what looks the same: NFC, straight quotes, plain minus signs, single spaces."""
    text = " ".join(unicodedata.normalize("NFC", text).translate(_PLAIN).split())
    return text.casefold() if fold_case else text


def exact(answer: str, references: str | Iterable[str], *, fold_case: bool = False) -> bool:
    """Equal to one of the references, up to `normalise`."""
    wanted = [references] if isinstance(references, str) else references
    return normalise(answer, fold_case=fold_case) in {normalise(text, fold_case=fold_case) for text in wanted}


def edit_distance(first: Sequence[object], second: Sequence[object]) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions cost one each."""
    if len(first) < len(second):
        first, second = second, first
    row = list(range(len(second) + 1))
    for number, item in enumerate(first, start=1):
        diagonal, row[0] = row[0], number
        for column, other in enumerate(second, start=1):
            cost = min(row[column] + 1, row[column - 1] + 1, diagonal + (item != other))
            diagonal, row[column] = row[column], cost
    return row[-1]


def anls(answer: str, references: str | Iterable[str], *, threshold: float = 0.5) -> float:
    """Average Normalised Levenshtein Similarity of one answer (ST-VQA, https://arxiv.org/abs/1907.00490).

    Equation 1: 1 - distance / longer length against the best reference, and 0 once that distance reaches
    the threshold. Case does not count, as in the benchmark's own evaluation.
    """
    given = normalise(answer, fold_case=True)
    wanted = [references] if isinstance(references, str) else references
    best = 0.0
    for reference in (normalise(text, fold_case=True) for text in wanted):
        longest = max(len(given), len(reference))
        apart = edit_distance(given, reference) / longest if longest else 0.0
        best = max(best, 1.0 - apart if apart < threshold else 0.0)
    return best


def relaxed_accuracy(answer: str, reference: str, *, tolerance: float = 0.05) -> bool:
    """ChartQA's measure (https://arxiv.org/abs/2203.10244, section 5.1): 5 % off is right for numbers.

    Everything else must be equal but for case. A per cent sign divides by 100; currency signs and
    thousands separators, which the original leaves to the data set, are dropped on both sides.
    """
    given, wanted = _number(answer), _number(reference)
    if given is None or wanted is None:
        return exact(answer, reference, fold_case=True)
    return abs(given - wanted) <= tolerance * abs(wanted)


def character_error_rate(answer: str, reference: str) -> float:
    """Edits per reference character, case and line breaks included; above 1 for long wrong answers."""
    return edit_distance(answer, reference) / max(len(reference), 1)


def _number(text: str) -> float | None:
    plain = re.sub(r"[$€£¥,\s]", "", normalise(text))
    scale = 0.01 if plain.endswith("%") else 1.0
    try:
        return float(plain.removesuffix("%")) * scale
    except ValueError:
        return None
