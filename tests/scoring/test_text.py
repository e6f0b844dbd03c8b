import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.scoring.text import (
    anls,
    character_error_rate,
    edit_distance,
    exact,
    normalise,
    relaxed_accuracy,
)


def test_normalise_unites_what_looks_the_same() -> None:
    assert normalise("  the ‘old’\n “house” ") == "the 'old' \"house\""
    assert normalise("Cafe\u0301") == "Café"
    assert normalise("Total", fold_case=True) == "total"


def test_exact_counts_case_and_takes_any_reference() -> None:
    assert exact("$12.40 ", "$12.40")
    assert not exact("The total is $12.40", "$12.40")
    assert not exact("river", "River")
    assert exact("river", ("Lake", "River"), fold_case=True)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("ab", "ba", 2), ("flaw", "lawn", 2)],
)
def test_edit_distance_of_textbook_pairs(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == distance


@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edit_distance_is_a_metric(first: str, second: str, third: str) -> None:
    assert edit_distance(first, second) == edit_distance(second, first)
    assert (edit_distance(first, second) == 0) == (first == second)
    assert edit_distance(first, third) <= edit_distance(first, second) + edit_distance(second, third)


def test_anls_by_hand() -> None:
    assert anls("Sitting", "sitting") == 1.0
    assert anls("sittin", "sitting") == pytest.approx(1 - 1 / 7)
    assert anls("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert anls("ab", "ac") == 0.0, "a distance of exactly one half is wrong"
    assert anls("lake", ("river", "lakes")) == pytest.approx(0.8)


def test_relaxed_accuracy_allows_five_per_cent_of_numbers_only() -> None:
    assert relaxed_accuracy("95", "100")
    assert not relaxed_accuracy("94.9", "100")
    assert relaxed_accuracy("$1,284.50", "1284.5")
    assert relaxed_accuracy("12%", "0.12")
    assert relaxed_accuracy("0", "0")
    assert not relaxed_accuracy("0.01", "0")
    assert relaxed_accuracy("apple", "Apple")
    assert not relaxed_accuracy("apples", "Apple")


def test_character_error_rate_by_hand() -> None:
    assert character_error_rate("$12.40", "$12.40") == 0.0
    assert character_error_rate("$12.4", "$12.40") == pytest.approx(1 / 6)
    assert character_error_rate("abcd", "a") == 3.0
