"""A loop is what the definition says, found at the first token at which it holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.engine.loops import LONGEST_PERIOD, LOOK_EVERY, MIN_REPEATS, MIN_TOKENS, LoopGuard, loop_period


def _by_definition(ids: list[int]) -> int | None:
    """The shortest piece that fills the last max(4 pieces, 64 tokens)."""
    for period in range(1, LONGEST_PERIOD + 1):
        stretch = max(MIN_REPEATS * period, MIN_TOKENS)
        tail = ids[-stretch:]
        if len(tail) == stretch and tail == (tail[:period] * stretch)[:stretch]:
            return period
    return None


@given(
    st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(0, 90)
)
def test_it_is_the_definition(before: list[int], piece: list[int], length: int) -> None:
    ids = before + (piece * 100)[:length]
    assert loop_period(ids) == _by_definition(ids)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=LONGEST_PERIOD), st.lists(st.integers(0, 500), max_size=50))
def test_whatever_repeats_is_found_in_time(piece: list[int], before: list[int]) -> None:
    ids = before + piece * max(MIN_REPEATS, -(-MIN_TOKENS // len(piece)))
    period = loop_period(ids)
    assert period is not None
    assert len(piece) % period == 0 or period < len(piece)


@pytest.mark.parametrize("piece", [[7], [7, 8], list(range(16)), list(range(128))])
def test_it_is_found_at_the_first_token_at_which_it_holds(piece: list[int]) -> None:
    needed = max(MIN_REPEATS * len(piece), MIN_TOKENS)
    ids = (piece * needed)[:needed]
    assert loop_period(ids) == len(piece)
    assert loop_period(ids[:-1]) is None
    assert loop_period([999, *ids]) == len(piece)
    assert loop_period([*ids, 999]) is None


@given(st.integers(0, 10**6), st.integers(1, 400), st.lists(st.integers(-9, -1), min_size=1, max_size=6))
def test_an_honest_list_is_no_loop(first: int, num: int, words: list[int]) -> None:
    """Lines that differ by their number alone, as in tables and enumerations."""
    ids = [token for line in range(num) for token in (first + line, *words)]
    assert all(loop_period(ids[:end]) is None for end in range(0, len(ids), max(1, len(ids) // 20)))


def test_a_few_repeats_of_a_long_piece_are_no_loop() -> None:
    """A refrain, a form's rows: three times the same is honest."""
    assert loop_period(list(range(100)) * 3) is None
    assert loop_period([0] * (MIN_TOKENS - 1)) is None
    assert loop_period(list(range(LONGEST_PERIOD + 1)) * 5) is None


@given(
    st.lists(st.integers(0, 2), max_size=70), st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(0, 200)
)
def test_the_guard_says_after_every_token_what_the_definition_says(
    before: list[int], piece: list[int], length: int
) -> None:
    guard, said = LoopGuard(), list[int]()
    for token_id in before + (piece * 200)[:length]:
        said.append(token_id)
        assert guard.period(said) == loop_period(said)


@pytest.mark.parametrize("start", range(LOOK_EVERY))
@pytest.mark.parametrize("period", [1, 15, 16, 17, 21, 128])
def test_the_guard_finds_a_loop_at_once_wherever_it_begins(period: int, start: int) -> None:
    needed = max(MIN_REPEATS * period, MIN_TOKENS)
    ids = [*range(1000, 1000 + start), *(list(range(period)) * needed)[:needed]]
    guard = LoopGuard()
    assert [guard.period(ids[: end + 1]) for end in range(len(ids))] == [None] * (len(ids) - 1) + [period]
