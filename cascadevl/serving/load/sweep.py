"""More and more load until it is too much: the knee of a server."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from cascadevl.serving.load.traffic import Pace

GROWTH = 2.0
"""From one load to the next."""
MOST_LOADS = 12
FALLS, GAINS, EXPLODES = 0.95, 1.05, 1.5
"""Shares of the best so far below which goodput has fallen, and above which throughput still grows; growth of the
p99 of TTFT that is no chance."""


def loads(pace: Pace) -> list[Pace]:
    """From `pace` on, each load twice the one before: of the rate, or of the clients where there is none."""
    if pace.rate is not None:
        return [replace(pace, rate=pace.rate * GROWTH**step) for step in range(MOST_LOADS)]
    assert pace.concurrency is not None
    return [replace(pace, concurrency=round(pace.concurrency * GROWTH**step)) for step in range(MOST_LOADS)]


def too_much(earlier: Sequence[dict[str, Any]], last: dict[str, Any]) -> bool:
    """Whether `last` lies past the knee: goodput has fallen, or, at a throughput that no longer grows, the p99 of
    TTFT explodes. Without limits, goodput is what was answered."""
    if last["ttft_ms"] is None:  # nothing was answered
        return True
    if not earlier:
        return False
    best_good, best_tokens = max(map(_goodput, earlier)), max(each["output_tokens_per_s"] for each in earlier)
    if _goodput(last) < FALLS * best_good:
        return True
    grew = last["output_tokens_per_s"] > GAINS * best_tokens
    return not grew and last["ttft_ms"]["p99"] > EXPLODES * earlier[-1]["ttft_ms"]["p99"]


def _goodput(found: dict[str, Any]) -> float:
    good = found["goodput_per_s"]
    return found["requests_per_s"] if good is None else good


async def sweep(
    pace: Pace, run: Callable[[Pace], Awaitable[dict[str, Any]]]
) -> tuple[list[dict[str, Any]], int | None]:
    """What each load gave, the one past the knee included, and the number of the knee; None: it was not reached, or
    the first load was too much already."""
    found: list[dict[str, Any]] = []
    for each in loads(pace):
        row = await run(each)
        past = too_much(found, row)
        found.append(row)
        if past:
            return found, len(found) - 2 if len(found) > 1 else None
    return found, None
