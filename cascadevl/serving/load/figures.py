"""What timelines of requests say, by the definitions of vLLM's `bench serve`.

TTFT     from sending a request to the first piece of its answer
ITL      gaps between the pieces of an answer, of all requests together
TPOT     (E2E - TTFT) / (n - 1) of each request with n tokens; none where n = 1
E2E      from sending a request to the end of its answer
goodput  requests a second that keep within all limits; where n = 1, TPOT is kept

Tokens are those of `usage`: a piece may hold several of them, or only part of a character.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cascadevl.core.errors import ConfigError


@dataclass(slots=True)
class Timeline:
    """One request as its client saw it; times are those of one clock."""

    started_s: float
    piece_s: list[float] = field(default_factory=list)
    """When each piece of the answer came."""
    ended_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int | None = None
    """None: the server does not tell, and pieces are counted."""
    problem: str | None = None
    """Why it has failed."""

    @property
    def num_tokens(self) -> int:
        return len(self.piece_s) if self.completion_tokens is None else self.completion_tokens

    @property
    def ttft_s(self) -> float:
        return self.piece_s[0] - self.started_s

    @property
    def e2e_s(self) -> float:
        return self.ended_s - self.started_s

    @property
    def tpot_s(self) -> float | None:
        return (self.e2e_s - self.ttft_s) / (self.num_tokens - 1) if self.num_tokens > 1 else None

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in zip(self.piece_s, self.piece_s[1:], strict=False)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What an answer must keep within to be good, in milliseconds."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    @classmethod
    def read(cls, words: Sequence[str]) -> "Limits | None":
        """`ttft:500 tpot:50 e2e:9000`; None for no words. Raises ConfigError."""
        found: dict[str, float] = {}
        for word in words:
            name, _, value = word.partition(":")
            name = "e2e" if name == "e2el" else name  # vLLM's name
            try:
                limit = float(value)
            except ValueError:
                limit = -1.0
            if name not in ("ttft", "tpot", "e2e") or name in found or not limit > 0:
                raise ConfigError(f"{word!r} is no limit; expected ttft:MS, tpot:MS or e2e:MS, each once.")
            found[name] = limit
        return cls(**found) if found else None

    def kept(self, timeline: Timeline) -> bool:
        taken = ((self.ttft, timeline.ttft_s), (self.tpot, timeline.tpot_s or 0.0), (self.e2e, timeline.e2e_s))
        return all(limit is None or 1000 * seconds <= limit for limit, seconds in taken)


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """In milliseconds; None of nothing."""
    if not seconds:
        return None
    ms = 1000 * np.asarray(seconds)
    found = {"mean": ms.mean(), "median": np.median(ms), "p99": np.percentile(ms, 99)}
    return {name: round(float(value), 3) for name, value in found.items()}


def summary(timelines: Sequence[Timeline], limits: Limits | None = None) -> dict[str, Any]:
    """Of one load. Rates are over the time from the first request to the end of the last."""
    good = [timeline for timeline in timelines if timeline.problem is None]
    duration_s = max(t.ended_s for t in timelines) - min(t.started_s for t in timelines)
    prompt, said = sum(t.prompt_tokens for t in good), sum(t.num_tokens for t in good)

    def rate(count: int) -> float:
        return round(count / duration_s, 3) if duration_s > 0 else 0.0

    return {
        "requests": len(timelines),
        "failed": len(timelines) - len(good),
        "problems": dict(Counter(t.problem for t in timelines if t.problem is not None).most_common()),
        "duration_s": round(duration_s, 3),
        "requests_per_s": rate(len(good)),
        "prompt_tokens": prompt,
        "cached_tokens": sum(t.cached_tokens for t in good),
        "output_tokens": said,
        "prompt_tokens_per_s": rate(prompt),
        "output_tokens_per_s": rate(said),
        "tokens_counted": "pieces" if any(t.completion_tokens is None for t in good) else "usage",
        "ttft_ms": spread([t.ttft_s for t in good]),
        "itl_ms": spread([gap for t in good for gap in t.gaps_s]),
        "tpot_ms": spread([t.tpot_s for t in good if t.tpot_s is not None]),
        "e2e_ms": spread([t.e2e_s for t in good]),
        "goodput_per_s": rate(sum(map(limits.kept, good))) if limits else None,
    }
