import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.scoring.tokens import plain, tokenise

TEXTS = st.text(alphabet="ab1$,.|#*`-<> \n—é漢'\u00ad_", max_size=40)


@given(TEXTS)
def test_gaps_and_texts_joined_give_the_reading_again(reading):
    tokens, tail = tokenise(reading)
    assert "".join(token.gap + token.text for token in tokens) + tail == reading
    assert all(reading[token.start : token.end] == token.text for token in tokens)


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        ("# Invoice\n\n**Total**  due", "Invoice\nTotal due"),
        ("- one\n* two\n+ three", "one\ntwo\nthree"),
        ("| a | b |\n|---|:-:|\n| 1 | 2 |", "a b\n1 2"),
        ("<p>one<br>two</p>", "one\ntwo"),
        ("```text\ncode\n```", "code"),
        ("snake_case 2*3 5 * 3 a<b", "snake_case 2*3 5 * 3 a<b"),
        ("“Quoted” – it’s ﬁne…", '"Quoted" - it\'s fine...'),
        ("soft\u00adhyphen", "softhyphen"),
        ("   ", ""),
    ],
)
def test_markup_and_spellings_are_not_compared(reading, said):
    assert plain(reading) == said


def test_numbers_are_tokens_of_their_own_and_marks_are_peeled_off():
    tokens, _ = tokenise("(INV-7), pay $1,284.50. 3% or $l,2B4.50!")
    assert [(token.text, token.kind) for token in tokens] == [
        ("(", "mark"), ("INV-7", "number"), (")", "mark"), (",", "mark"), ("pay", "word"), ("$1,284.50", "number"),
        (".", "mark"), ("3%", "number"), ("or", "word"), ("$l,2B4.50", "number"), ("!", "mark"),
    ]  # fmt: skip


def test_ideographs_stand_alone():
    assert [token.text for token in tokenise("合計12円 ok")[0]] == ["合", "計", "12", "円", "ok"]
