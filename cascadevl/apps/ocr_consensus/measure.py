"""Pages whose truth is known: how many errors the consensus makes, and which `max_doubt` finds the bad ones."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cascadevl.core.errors import ConfigError
from cascadevl.core.files import content_hash
from cascadevl.scoring.consensus import distance
from cascadevl.scoring.threshold import calibrate, judge
from cascadevl.scoring.tokens import plain

ENOUGH = 8
"""Pages with truth from which on half of them are kept for the proof."""


def measure(rows: Sequence[dict[str, Any]], out: Path, truth: Path, bad_error: float) -> dict[str, Any]:
    """Gives rows an error rate (edits over the longer text, without markup), and chooses a threshold.

    It is chosen on one half of the pages, told by a hash of their names, and proved on the other.
    """
    pairs: dict[str, tuple[float, float]] = {}
    for row in rows:
        path = truth / f"{row['name']}.txt"
        if "error" in row or not path.is_file():
            continue
        said = (out / f"{row['name']}.txt").read_text(encoding="utf-8")
        true = path.read_text(encoding="utf-8")
        row["error_rate"] = round(distance(*(" ".join(plain(text).split()) for text in (said, true))), 4)
        pairs[row["name"]] = (row["first_unconfirmed"], row["error_rate"])
    if not pairs:
        raise ConfigError(f"{str(truth)!r} holds no text of any page, such as {rows[0]['name']}.txt.")
    order = sorted(pairs, key=content_hash)
    half = len(order) // 2 if len(order) >= ENOUGH else len(order)
    chosen = calibrate([pairs[name] for name in order[:half]], bad_error)
    proof = [pairs[name] for name in order[half:]]
    return {
        **asdict(chosen),
        "proved_on_others": asdict(judge(proof, chosen.value, bad_error)) if proof else None,
        "mean_error_rate": round(sum(error for _, error in pairs.values()) / len(pairs), 4),
    }
