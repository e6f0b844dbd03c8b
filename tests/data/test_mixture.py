"""Draws: every row as often as it should, in an order that a seed and a position name."""

import collections
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.core.errors import ConfigError
from cascadevl.core.messages import Conversation
from cascadevl.data.mixture import Mixture, permuted
from cascadevl.data.sources import Dataset, Example


class Rows:
    """A source that is only counted."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self._size = name, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        return Example(Conversation.ask("q"), f"{self.name}:{index + 1}")


def _mixture(*settings: tuple[int, dict[str, Any]], seed: int = 0) -> Mixture:
    return Mixture([Dataset(source=Rows(f"set{i}", size), **more) for i, (size, more) in enumerate(settings)], seed)


def _counts(mixture: Mixture, start: int, stop: int) -> collections.Counter[tuple[int, int]]:
    return collections.Counter(map(mixture, range(start, stop)))


@given(st.integers(1, 700), st.integers(0, 5))
def test_a_permutation_takes_every_number_once(size: int, key: int) -> None:
    assert sorted(permuted(i, size, str(key)) for i in range(size)) == list(range(size))


def test_large_permutations_are_computed_one_entry_at_a_time() -> None:
    size = 10**12 + 39
    found = [permuted(i, size, "a") for i in range(2000)]
    assert len(set(found)) == 2000 and max(found) < size
    assert 0.45 < sum(found) / 2000 / size < 0.55
    steps = [b > a for a, b in itertools.pairwise(found)]
    assert 0.45 < sum(steps) / len(steps) < 0.55, "as often up as down"


def test_every_place_is_as_likely_for_a_number_as_any_other() -> None:
    counts = collections.Counter(permuted(0, 6, str(key)) for key in range(6000))
    assert all(abs(counts[place] - 1000) < 150 for place in range(6)), "five standard deviations"


def test_without_settings_an_epoch_shows_every_row_once_and_epochs_differ() -> None:
    mixture = _mixture((7, {}), (12, {}))
    assert len(mixture) == 19
    first, second = ([mixture(p) for p in range(start, start + 19)] for start in (0, 19))
    every = [(0, row) for row in range(7)] + [(1, row) for row in range(12)]
    assert sorted(first) == sorted(second) == every
    assert first != second and first != every


def test_half_is_always_the_same_first_half_and_twice_is_twice() -> None:
    mixture = _mixture((11, {"repeat": 0.5}), (4, {"repeat": 2.0}))
    assert len(mixture) == 5 + 8
    for epoch in range(3):
        counts = _counts(mixture, 13 * epoch, 13 * (epoch + 1))
        assert counts == {**{(0, row): 1 for row in range(5)}, **{(1, row): 2 for row in range(4)}}


def test_one_and_a_half_times_evens_out_over_two_epochs() -> None:
    mixture = _mixture((10, {"repeat": 1.5}))
    assert sorted(_counts(mixture, 0, 15).values()) == [1] * 5 + [2] * 5
    assert set(_counts(mixture, 0, 30).values()) == {3}


def test_weights_share_out_the_draws_of_an_epoch_to_the_nearest_whole_number() -> None:
    mixture = _mixture((90, {"weight": 1.0}), (10, {"weight": 2.0}), (1, {"weight": 4.0}))
    assert mixture.draws == [14, 29, 58] and len(mixture) == 101
    counts = _counts(mixture, 0, 101)
    assert [sum(n for (d, _), n in counts.items() if d == number) for number in range(3)] == mixture.draws
    assert {counts[1, row] for row in range(10)} == {2, 3}, "pass after pass, no row twice before all are seen"


def test_a_small_weight_goes_on_in_the_next_epoch_with_rows_not_seen_yet() -> None:
    mixture = _mixture((90, {"weight": 1.0}), (10, {"weight": 9.0}))
    assert mixture.draws == [10, 90]
    seen = [row for number, row in map(mixture, range(9 * 100)) if number == 0]
    assert sorted(seen) == list(range(90))
    assert sorted(seen[:10]) != list(range(10)), "not the first ones, which may be of one kind"


@given(st.integers(0, 2**40), st.integers(0, 3))
def test_a_draw_is_a_function_of_seed_and_position(position: int, seed: int) -> None:
    one, other = (_mixture((50, {}), (70, {"repeat": 3.0}), seed=seed) for _ in range(2))
    assert one(position) == other(position)


def test_seeds_differ() -> None:
    one, other = (_mixture((50, {}), seed=seed) for seed in (0, 1))
    assert [one(p) for p in range(50)] != [other(p) for p in range(50)]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_the_positions_without_gap_or_overlap(world: int) -> None:
    mixture = _mixture((13, {}), (5, {"repeat": 2.0}))
    shards = [[mixture(p) for p in range(rank, len(mixture), world)] for rank in range(world)]
    assert collections.Counter(itertools.chain(*shards)) == _counts(mixture, 0, len(mixture))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "no data to train on"),
        ([(0, {})], "set0 has no rows"),
        ([(3, {"repeat": 0.0})], "set0 has repeat 0.0: expected more than 0"),
        ([(3, {"weight": 1.0}), (3, {})], "set1 has no weight, others have"),
        ([(3, {"weight": -1.0})], "A weight is -1.0"),
    ],
)
def test_what_cannot_be_mixed_is_refused(settings: list[tuple[int, dict[str, Any]]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _mixture(*settings)
