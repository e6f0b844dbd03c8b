"""Does an answer only repeat itself? Small models that read long pages do, until the budget ends."""

from collections.abc import Sequence

LONGEST_PERIOD = 128
MIN_REPEATS = 4
MIN_TOKENS = 64
"""A loop is a stretch at the end of at least MIN_TOKENS that says the same thing MIN_REPEATS times.

Honest repetition (a column of zeros, a refrain) is shorter than that or changes in between."""


def loop_period(token_ids: Sequence[int]) -> int | None:
    """Length of the repeated piece, or None while there is no loop."""
    for period in range(1, LONGEST_PERIOD + 1):
        stretch = max(period * MIN_REPEATS, MIN_TOKENS)
        if stretch > len(token_ids) or token_ids[-1] != token_ids[-1 - period]:
            continue
        tail = token_ids[-stretch:]
        if all(tail[i] == tail[i + period] for i in range(stretch - period)):
            return period
    return None
