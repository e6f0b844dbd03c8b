"""Does an answer only repeat itself? Small models that read long pages do, until the budget ends."""

from collections.abc import Iterable, Sequence

LONGEST_PERIOD = 128
MIN_REPEATS = 4
MIN_TOKENS = 64
"""A loop is a stretch at the end of at least MIN_TOKENS that says the same thing MIN_REPEATS times.

Honest repetition (a column of zeros, a refrain) is shorter than that or changes in between."""

LOOK_EVERY = 32
SEEN_BEFORE = MIN_TOKENS - MIN_TOKENS // MIN_REPEATS - (LOOK_EVERY - 1)
"""In any loop so many tokens and LOOK_EVERY - 1 more, at least, equal those a period before them."""


def loop_period(token_ids: Sequence[int], periods: Iterable[int] = range(1, LONGEST_PERIOD + 1)) -> int | None:
    """Length of the repeated piece, one of `periods`, or None while there is no loop."""
    for period in periods:
        stretch = max(period * MIN_REPEATS, MIN_TOKENS)
        if stretch <= len(token_ids) and _repeats(token_ids, period, stretch - period):
            return period
    return None


class LoopGuard:
    """Asked after every token, it says what `loop_period` would, in a fraction of the time.

    All periods are looked at every LOOK_EVERY tokens only; a loop that will be one before the next look has begun.
    """

    def __init__(self) -> None:
        self._begun: list[int] = []

    def period(self, token_ids: Sequence[int]) -> int | None:
        if len(token_ids) % LOOK_EVERY == 0:
            possible = range(1, min(LONGEST_PERIOD, len(token_ids) - SEEN_BEFORE) + 1)
            self._begun = [period for period in possible if _repeats(token_ids, period, SEEN_BEFORE)]
        return loop_period(token_ids, self._begun) if self._begun else None


def _repeats(token_ids: Sequence[int], period: int, num: int) -> bool:
    """Do the last `num` tokens equal those a period before them?"""
    return token_ids[-1] == token_ids[-1 - period] and token_ids[-num:] == token_ids[-num - period : -period]
