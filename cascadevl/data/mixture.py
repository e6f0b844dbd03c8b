"""Which row is read next: a pure function of the seed and of a position, so that a position is all its state.

An epoch has a slot for every time a row is to be seen, and a permutation of the slots is its order. The
permutation is computed one entry at a time and never stored (format-preserving encryption: Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", 2002), so millions of rows cost as much state as ten.
"""

import bisect
import functools
import hashlib
import itertools
from collections.abc import Sequence

from cascadevl.core.errors import ConfigError
from cascadevl.data.sources import Dataset

ROUNDS = 6


class Mixture:
    """position -> (number of the data set, row). `len` is the number of draws in an epoch."""

    def __init__(self, datasets: Sequence[Dataset], seed: int = 0) -> None:
        if not datasets:
            raise ConfigError("There is no data to train on: expected at least one data set.")
        for dataset in datasets:
            if not len(dataset.source):
                raise ConfigError(f"{dataset.source.name} has no rows: take it out of the mixture.")
            if dataset.repeat <= 0:
                raise ConfigError(f"{dataset.source.name} has repeat {dataset.repeat}: expected more than 0.")
        self._seed = seed
        sizes = [(len(dataset.source), dataset.repeat) for dataset in datasets]
        self._rows = [rows if repeat >= 1 else max(1, int(rows * repeat)) for rows, repeat in sizes]
        draws = [
            rows if repeat < 1 else round(rows * repeat) for rows, (_, repeat) in zip(self._rows, sizes, strict=True)
        ]
        self.draws = _weighted(sum(draws), datasets) or draws
        """Of each data set, in an epoch."""
        self._ends = list(itertools.accumulate(self.draws))

    def __len__(self) -> int:
        return self._ends[-1]

    def __call__(self, position: int) -> tuple[int, int]:
        """Rows of one data set come in passes, each in an order of its own, which go on over the ends of epochs."""
        epoch, at = divmod(position, len(self))
        slot = permuted(at, len(self), f"{self._seed}/{epoch}")
        number = bisect.bisect(self._ends, slot)
        nth = epoch * self.draws[number] + slot - (self._ends[number] - self.draws[number])
        turn, at = divmod(nth, self._rows[number])
        return number, permuted(at, self._rows[number], f"{self._seed}/{number}/{turn}")


def _weighted(total: int, datasets: Sequence[Dataset]) -> list[int] | None:
    """`total` draws shared out by weight, what is left after rounding down to the largest fractions."""
    weights = [dataset.weight for dataset in datasets if dataset.weight is not None]
    if not weights:
        return None
    if len(weights) < len(datasets):
        missing = next(dataset.source.name for dataset in datasets if dataset.weight is None)
        raise ConfigError(f"{missing} has no weight, others have: give a weight to all data sets, or to none.")
    if min(weights) <= 0:
        raise ConfigError(f"A weight is {min(weights)}: expected more than 0. Take the data set out instead.")
    exact = [total * weight / sum(weights) for weight in weights]
    draws = [int(share) for share in exact]
    by_fraction = sorted(range(len(exact)), key=lambda i: draws[i] - exact[i])
    for number in by_fraction[: total - sum(draws)]:
        draws[number] += 1
    return draws


def permuted(index: int, size: int, key: str) -> int:
    """Where `index` goes in the permutation of range(size) that `key` names.

    A Feistel network permutes the next larger square of a power of two; who lands outside walks on.
    """
    half = max(3, ((size - 1).bit_length() + 1) // 2)
    mask, keys = (1 << half) - 1, _keys(key)
    while True:
        left, right = index >> half, index & mask
        for key_of_round in keys:
            left, right = right, left ^ (_mixed(right ^ key_of_round) & mask)
        index = left << half | right
        if index < size:
            return index


@functools.lru_cache(maxsize=256)
def _keys(key: str) -> tuple[int, ...]:
    digest = hashlib.sha512(key.encode()).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS))


def _mixed(x: int) -> int:
    """All bits of 64 depend on all others (the finaliser of splitmix64)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 31)
