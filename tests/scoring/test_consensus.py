import itertools
import random
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadevl.core.errors import ConfigError, MissingExtra
from cascadevl.scoring import lattice
from cascadevl.scoring.consensus import distance, entropies, in_order, rank, score
from cascadevl.scoring.text import edit_distance
from cascadevl.scoring.tokens import tokenise

READINGS = st.lists(st.text(alphabet="ab1 \n.#", max_size=14), min_size=1, max_size=4)


def test_entropies_are_those_of_the_released_package():
    """The three strings of its README: 1/11, 1.5/11, 1.5/11."""
    found = entropies(["Hello World", "Hello Wrld", "Hallo World"])
    assert found == pytest.approx([1 / 11, 1.5 / 11, 1.5 / 11])


def test_distance_is_edits_over_the_longer_length():
    assert distance("", "") == 0
    assert distance("abc", "") == 1
    for one, other in itertools.product(["kitten", "sitting", "k", "total 12"], repeat=2):
        assert distance(one, other) == pytest.approx(edit_distance(one, other) / max(len(one), len(other)))


@given(READINGS, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_the_order_of_readings_does_not_matter(readings, rng):
    order = list(range(len(readings)))
    rng.shuffle(order)
    one, other = score(readings), score([readings[at] for at in order])
    assert (one.text, one.doubt, one.number_doubt, one.raw_doubt) == (
        other.text, other.doubt, other.number_doubt, other.raw_doubt,
    )  # fmt: skip
    assert one.per_line == other.per_line
    assert [one.weights[at] for at in order] == list(other.weights)
    assert [[each.text for each in column.candidates] for column in one.columns] == [
        [each.text for each in column.candidates] for column in other.columns
    ]


@given(st.text(alphabet="ab1 \n.#*|é漢", max_size=30), st.integers(2, 4))
@settings(deadline=None)
def test_identical_readings_give_the_very_text_without_doubt(reading, num):
    page = score([reading] * num)
    assert page.text == reading
    assert page.doubt == page.raw_doubt == page.number_doubt == 0
    assert not page.doubts
    assert all(line.doubt == 0 for line in page.per_line)


def test_a_lone_reading_is_handed_on_and_never_trusted():
    page = score(["pay 12"])
    assert (page.text, page.doubt, page.number_doubt, page.weights) == ("pay 12", 1.0, 1.0, (1.0,))
    assert [line.doubt for line in page.per_line] == [1.0]
    assert score([""]).doubt == 1.0


def test_of_two_readings_the_trusted_one_stands_and_the_doubt_is_told():
    page = score(["pay 12 now", "pay 72 now"], trust=[1, 2])
    assert page.text == "pay 72 now"
    assert page.doubt == pytest.approx(0.1)
    assert page.number_doubt == pytest.approx(1 / 3)
    assert score(["pay 12 now", "pay 72 now"]).text == score(["pay 72 now", "pay 12 now"]).text


def test_blank_readings_agree_with_each_other_and_doubt_the_others():
    assert score(["", "\n", " "]).doubt == 0
    page = score(["", "total 5", "total 5"])
    assert page.text == "total 5"
    assert page.entropies == (1.0, 0.5, 0.5)


def test_one_digit_is_a_doubt_however_long_the_page():
    words = " ".join(f"word{'abcdefghij'[at % 10]}" for at in range(600))
    page = score([f"{words} 1,284.50", f"{words} 1,284.50", f"{words} 1,284.60"])
    assert page.doubt < 0.001
    assert page.number_doubt > 0.3
    assert [column.text for column in page.doubts] == ["1,284.50"]


def test_markup_counts_in_the_raw_doubt_alone():
    page = score(["# Sum\n\n**12**", "Sum\n12", "Sum 12"])
    assert page.doubt == 0 < page.raw_doubt


def test_reordered_lines_are_laid_beside_each_other():
    lines = ["first line of the page", "second one, longer", "the third: 33", "and the last of all"]
    ordered = "\n".join(lines)
    swapped = "\n".join([lines[2], lines[3], lines[0], lines[1].replace("longer", "langer")])
    page = score([ordered, ordered.replace("33", "38"), swapped])
    assert page.text == ordered
    assert page.doubt < 0.02 < page.raw_doubt
    assert {column.text for column in page.doubts} == {"longer", "33"}


def test_split_and_merged_lines_are_no_doubt():
    page = score(["alpha beta gamma\ndelta 12", "alpha beta\ngamma delta 12", "alpha beta gamma delta 12"])
    assert page.doubt == 0
    assert not page.doubts


def test_lines_tell_where_the_doubt_is():
    page = score(["good line\nbad lime\nend", "good line\nbad line\nend", "good line\nbad line\nend"])
    assert [line.text for line in page.per_line] == ["good line", "bad line", "end"]
    assert [line.doubt > 0 for line in page.per_line] == [False, True, False]
    assert [at for line in page.per_line for at in line.columns] == list(range(len(page.columns)))


def test_two_weak_readers_that_agree_do_not_outvote_a_trusted_one():
    readings = ["the whole page was read", "", ""]
    assert score(readings).text == ""
    assert score(readings, trust=[1, 0.3, 0.3]).text == "the whole page was read"


def test_a_page_that_two_readings_agree_on_is_confirmed_whatever_the_third_says():
    page = score(["the total is 12", "the total is 12", "~~~ %$ ~~"])
    assert page.unconfirmed == 0 < page.doubt
    assert (
        score(["the total is 12", "xxx xxxxx xx xx"]).unconfirmed == score(["the total is 12", "xxx xxxxx xx xx"]).doubt
    )
    assert score(["alone"]).unconfirmed == 1
    apart = score(["abcd", "abxx", "yyyy"])
    assert apart.unconfirmed == 0.5, "of the medoid to its neighbour"


def test_ranking_puts_doubt_first():
    pages = {"calm": score(["a", "a"]), "digit": score(["a " * 99 + "1", "a " * 99 + "2"]), "bad": score(["ab", "xy"])}
    assert rank(pages) == ["bad", "digit", "calm"]


@pytest.mark.parametrize("name", ["doubt", "number_doubt"])
def test_of_pages_that_promise_as_many_errors_the_more_doubtful_comes_first(name):
    page = score(["Total 12.50", "Total 12.50"])
    assert rank({"a": replace(page, **{name: 0.1}), "b": replace(page, **{name: 0.2})}) == ["b", "a"]


def test_lines_are_left_in_their_order_where_another_is_no_nearer():
    tokens, model = (tokenise(text)[0] for text in ("red\nreds see", "reds\nred\nblue"))
    assert in_order(tokens, model) is tokens


@pytest.mark.parametrize(
    ("readings", "trust"), [([], None), ("text", None), (["a"], [1, 2]), (["a"], [0]), (["a"], [float("nan")])]
)
def test_impossible_arguments_are_refused(readings, trust):
    with pytest.raises(ConfigError, match="Expected"):
        score(readings, trust)


def test_without_rapidfuzz_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    lattice.rapidfuzz_levenshtein.cache_clear()
    with pytest.raises(MissingExtra, match=r"cascadevl\[ocr\]"):
        score(["a", "b"])


def noisy(truth: str, rate: float, rng: random.Random) -> str:
    """Every character is replaced, dropped or doubled with an independent chance."""
    out = []
    for char in truth:
        draw = rng.random()
        if draw < 0.6 * rate and char != "\n":
            out.append(rng.choice("abcdefghijklmnopqrstuvwxyz0123456789"))
        elif draw < 0.8 * rate:
            continue
        else:
            out.append(char * (2 if draw < rate else 1))
    return "".join(out)


def test_consensus_beats_the_mean_and_nearly_always_the_best_reading():
    """60 pages, paired: the same readings for all sides. Errors are independent, as real ones are only in part."""
    rng = random.Random(7)
    letters = "eetaoinshrdlu"
    better_than_best = better_than_mean = 0
    for _ in range(60):
        words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(45)]
        words[::7] = [f"{rng.randint(1, 9999)}.{rng.randint(0, 99):02}" for _ in words[::7]]
        truth = "\n".join(" ".join(words[at : at + 9]) for at in range(0, 45, 9))
        readings = [noisy(truth, 0.05, rng) for _ in range(3)]
        wrong = [distance(reading, truth) for reading in readings]
        got = distance(score(readings).text, truth)
        better_than_mean += got < sum(wrong) / 3
        better_than_best += got < min(wrong)
    assert better_than_mean == 60
    assert better_than_best >= 54


def test_tokens_of_every_reading_are_all_in_the_columns():
    rng = random.Random(3)
    truth = "\n".join(" ".join("".join(rng.choices("abc12.,", k=4)) for _ in range(6)) for _ in range(5))
    readings = [noisy(truth, 0.2, rng) for _ in range(4)]
    page = score(readings)
    for at, reading in enumerate(readings):
        laid = sorted(char for column in page.columns for char in column.texts[at].replace(" ", ""))
        assert laid == sorted(char for token in tokenise(reading)[0] for char in token.text)
