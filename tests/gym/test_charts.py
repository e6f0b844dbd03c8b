import random
from collections import Counter

import pytest

from cascadevl.gym.charts import PHRASINGS, Charts
from cascadevl.gym.page import Page

SAMPLES = tuple(Charts().samples(150))


def asked_of_charts(num: int):
    """All that can be asked about each of some charts; tables are left out."""
    for seed in range(num):
        drawn = Charts().drawn(random.Random(seed))
        if drawn.asked.kind != "cell":
            yield [drawn.asked, *drawn.more]


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom in pixels of every box from now on."""
    drawn: list[tuple[float, float, float, float]] = []
    draw = Page.box

    def recorded(page: Page, *edges: float, **how) -> None:
        drawn.append(tuple(edge * page.scale for edge in edges))  # type: ignore[arg-type]
        draw(page, *edges, **how)

    monkeypatch.setattr(Page, "box", recorded)
    return drawn


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


def test_extremes_and_counts_are_those_of_the_values() -> None:
    for asked in asked_of_charts(60):
        values = {one.blanks["label"]: int(one.answer) for one in asked if one.kind == "value"}
        said = {one.kind: one.answer for one in asked if one.kind != "value"}
        assert said == {
            "largest": max(values, key=lambda label: values[label]),
            "smallest": min(values, key=lambda label: values[label]),
            "count": str(len(values)),
        }


def test_bars_and_points_stand_where_their_values_say(boxes) -> None:
    kinds = Counter()
    for asked in asked_of_charts(60):
        values = sorted(int(one.answer) for one in asked if one.kind == "value")
        lefts, tops, rights, bottoms = map(list, zip(*boxes[-len(values) :], strict=True))
        if "points" in [one.blanks.get("things") for one in asked]:
            kind, ends = "points", sorted(-top for top in tops)
        elif len(set(bottoms)) == 1:
            kind, ends = "upright", sorted(bottom - top for bottom, top in zip(bottoms, tops, strict=True))
        else:
            kind, ends = "lying", sorted(right - left for right, left in zip(rights, lefts, strict=True))
        kinds[kind] += 1
        # Between its neighbours' values a bar ends where its own says; bars begin at zero.
        unit = (ends[-1] - ends[0]) / (values[-1] - values[0])
        assert unit > 0
        assert ends == pytest.approx([ends[0] + unit * (value - values[0]) for value in values])
        assert kind == "points" or ends[0] == pytest.approx(unit * values[0])
    assert min(kinds.values()) > 3 and len(kinds) == 3


def test_a_frame_goes_around_its_table(boxes) -> None:
    framed = 0
    for seed in range(60):
        boxes.clear()
        drawn = Charts().drawn(random.Random(seed))
        if drawn.asked.kind == "cell" and boxes:
            framed += 1
            left, top, right, bottom = boxes[-1]
            for glyph in drawn.glyphs:
                assert left < glyph.left < glyph.right < right + 1 and top < glyph.top < glyph.bottom < bottom + 1
    assert framed > 3
