import pytest

from cascadevl.scoring.lattice import build, compose
from cascadevl.scoring.tokens import tokenise


def columns(*readings: str, weights: list[float] | None = None, backbone: int = 0):
    weights = weights or [1 / len(readings)] * len(readings)
    return build([tokenise(reading)[0] for reading in readings], weights, backbone)


def text(found) -> str:
    return "".join(column.gap + column.text for column in found if column.text)


def test_the_larger_weight_wins_a_column():
    found = columns("pay 17 now", "pay 11 now", "pay 11 now")
    assert text(found) == "pay 11 now"
    assert [column.kind for column in found] == ["word", "number", "word"]
    assert [round(column.doubt, 6) for column in found] == [0, 0.333333, 0]
    assert [(each.text, each.readings) for each in found[1].candidates] == [("11", (1, 2)), ("17", (0,))]
    assert text(columns("pay 17 now", "pay 11 now", "pay 11 now", weights=[0.6, 0.2, 0.2])) == "pay 17 now"


def test_every_column_knows_its_characters_in_every_reading():
    readings = ("the lazy dog", "thelazy dog", "lazy do9")
    for column in columns(*readings):
        for reading, place, own in zip(readings, column.places, column.texts, strict=True):
            assert (reading[place[0] : place[1]] if place else "") == own


def test_words_split_by_one_and_joined_by_another_fall_together():
    found = columns("InternVLreads pages", "InternVL reads pages", "InternVL reads pages")
    assert text(found) == "InternVL reads pages"
    assert max(column.doubt for column in found) == 0


def test_a_word_that_most_readings_have_is_put_in():
    found = columns("one three", "one two three", "one two three")
    assert text(found) == "one two three"
    assert [column.text for column in found if column.doubt] == ["two"]


def test_a_line_that_the_backbone_lacks_is_voted_on_token_by_token():
    found = columns("a\nz", "a\nsum 512 eur\nz", "a\nsum 512 eur\nz", "a\nsum 572 eur\nz")
    assert text(found) == "a\nsum 512 eur\nz"
    number = next(column for column in found if column.kind == "number")
    assert {each.text: round(each.share, 2) for each in number.candidates} == {"512": 0.5, "572": 0.25, "": 0.25}


def test_what_only_one_reader_saw_is_left_out_and_told():
    found = columns("one two", "one two", "one ghost two")
    assert text(found) == "one two"
    [doubt] = [column for column in found if column.doubt]
    assert [each.text for each in doubt.candidates] == ["", "ghost"]


def test_a_space_within_a_number_is_a_doubt_and_within_a_word_is_none():
    found = columns("sum 1 284 eu ro", "sum 1284 euro", "sum 1284 euro")
    assert text(found) == "sum 1284 euro"
    assert [column.text for column in found if column.doubt] == ["1284"]


def test_line_breaks_go_by_vote():
    assert text(columns("a b\nc d", "a b c d", "a b c d")) == "a b c d"
    assert text(columns("a b c d", "a b\nc d", "a b\nc d")) == "a b\nc d"


def test_markup_of_the_backbone_is_kept():
    assert text(columns("# Sum\n**12** eur", "Sum\n12 eur", "Sum\n12 eur")) == "# Sum\n**12** eur"


def test_a_word_nobody_read_is_put_together_by_characters():
    """Of `consensus` each reading has another letter wrong."""
    words = [("c0nsensus", 1 / 3), ("consenzus", 1 / 3), ("consensvs", 1 / 3)]
    composed = compose(words, "c0nsensus")
    assert composed.text == "consensus"
    assert composed.share == pytest.approx((6 + 3 * 2 / 3) / 9)
    assert text(columns("a c onsenzus b".replace("c o", "co"), "a c_nsensus b", "a consensvs b")) == "a consensus b"


def test_a_number_nobody_read_is_never_written():
    found = columns("sum 1234 eur", "sum 9834 eur", "sum 1294 eur")
    number = next(column for column in found if column.kind == "number")
    assert number.text in ("1234", "9834", "1294")
    assert all(each.readings for each in number.candidates)


def test_a_digit_of_one_weak_reader_does_not_make_a_word_a_number():
    assert [column.kind for column in columns("in", "in", "1n", weights=[0.4, 0.4, 0.2])] == ["word"]
    assert [column.kind for column in columns("SO", "SO", "50")] == ["number"]
