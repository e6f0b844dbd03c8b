import itertools
from collections import Counter

from cascadevl.core.task import Sample
from cascadevl.gym.reports import PHRASINGS, SECTIONS, Reports

SAMPLES = tuple(Reports().samples(120))
TITLES = {title.replace(" ", "") for title in SECTIONS}


def lines(sample: Sample) -> list[str]:
    """What is printed, in the order in which it was drawn."""
    rows = itertools.groupby(sample.glyphs, key=lambda glyph: glyph.top)
    return ["".join(glyph.char for glyph in row) for _, row in rows]


def test_every_kind_of_question_is_asked() -> None:
    kinds = Counter(sample.facts["kind"] for sample in SAMPLES)
    assert set(kinds) == set(PHRASINGS)


def test_an_answer_stands_in_the_section_that_is_asked_for() -> None:
    checked = 0
    for sample in SAMPLES:
        if sample.facts["kind"] != "field":
            continue
        (section,) = [title.replace(" ", "") for title in SECTIONS if title in sample.question]
        printed = lines(sample)
        behind = itertools.takewhile(lambda line: line not in TITLES, printed[printed.index(section) + 1 :])
        assert any(line.endswith(":" + "".join(sample.answer.split())) for line in behind), sample.id
        checked += 1
    assert checked > 20


def test_rows_and_cells_stand_on_one_line() -> None:
    checked = 0
    for sample in SAMPLES:
        if sample.facts["kind"] == "cell":
            (label,) = {word for word in sample.facts["words"] if f" {word} " in f"{sample.question[:-1]} "} or {
                word for word in sample.facts["words"] if f" {word}, " in sample.question
            }
            assert any(line.startswith(label) and sample.answer in line for line in lines(sample)), sample.id
            checked += 1
        elif sample.facts["kind"] == "rows":
            assert int(sample.answer) == len(lines(sample)) - 1 == len(sample.facts["words"])
            checked += 1
    assert checked > 20


def test_pages_have_four_to_six_tiles() -> None:
    ratios = {round(sample.image.width / sample.image.height, 2) for sample in SAMPLES}
    assert min(ratios) > 0.55 and max(ratios) < 1.8
