from collections import Counter

from cascadevl.gym.charts import PHRASINGS, Charts

SAMPLES = tuple(Charts().samples(150))


def test_every_kind_of_question_is_asked() -> None:
    kinds = Counter(sample.facts["kind"] for sample in SAMPLES)
    assert set(kinds) == set(PHRASINGS)
    assert min(kinds.values()) >= 3


def test_values_are_printed_in_most_charts() -> None:
    asked = [sample for sample in SAMPLES if sample.facts["kind"] in ("value", "cell")]
    printed = sum(sample.answer in "".join(glyph.char for glyph in sample.glyphs) for sample in asked)
    assert printed / len(asked) > 0.8


def test_categories_that_are_answers_are_printed() -> None:
    for sample in SAMPLES:
        if sample.facts["kind"] in ("largest", "smallest"):
            assert sample.answer in "".join(glyph.char for glyph in sample.glyphs)


def test_charts_have_two_to_five_bars_or_points() -> None:
    counts = {sample.answer for sample in SAMPLES if sample.facts["kind"] == "count"}
    assert counts <= set("2345") and len(counts) > 1
