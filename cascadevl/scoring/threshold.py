"""Which doubt is too much: a threshold chosen on pages whose truth is known.

Thresholds do not carry over from one definition of doubt, one set of readers or one kind of page to another, so
there is a function instead of a constant.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cascadevl.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """Pages with a doubt above `value` are taken for bad; how well that went on the pages it was chosen on.

    Those pages flatter it: report the figures of other pages.
    """

    value: float
    bad_error: float
    """Pages with a larger error rate are bad."""
    precision: float
    """Share of the bad among those taken for bad; 1 where none is."""
    recall: float
    """Share of the bad that are found; 1 where there are none."""
    f1: float
    num_pages: int
    num_bad: int


def judge(pairs: Sequence[tuple[float, float]], value: float, bad_error: float) -> Threshold:
    """A given threshold on pairs of doubt and error rate."""
    taken = [error > bad_error for doubt, error in pairs if doubt > value]
    num_bad, found = sum(error > bad_error for _, error in pairs), sum(taken)
    return Threshold(
        value=value,
        bad_error=bad_error,
        precision=found / len(taken) if taken else 1.0,
        recall=found / num_bad if num_bad else 1.0,
        f1=2 * found / (len(taken) + num_bad) if taken or num_bad else 1.0,
        num_pages=len(pairs),
        num_bad=num_bad,
    )


def calibrate(pairs: Sequence[tuple[float, float]], bad_error: float = 0.1) -> Threshold:
    """The threshold with the best F1 on pairs of doubt and error rate; of equals the largest, which routes least."""
    if not pairs or not all(math.isfinite(number) and number >= 0 for pair in pairs for number in pair):
        raise ConfigError(f"Expected pairs of doubt and error rate, finite and not negative, got {list(pairs)!r:.80}.")
    doubts = sorted({doubt for doubt, _ in pairs})
    between = [0.0, *((low + high) / 2 for low, high in pairwise(doubts)), doubts[-1]]
    return max((judge(pairs, value, bad_error) for value in between), key=lambda each: (each.f1, each.value))
