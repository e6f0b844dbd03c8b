import pytest

from cascadevl.core.errors import ConfigError
from cascadevl.gym.page import TILE_PX
from cascadevl.gym.text import Line, Paragraph


def test_easy_lines_are_short_and_dark_on_light() -> None:
    for sample in Line(difficulty="easy").samples(60):
        assert len(sample.answer.split()) <= 2
        width, height = sample.image.size
        assert 0.4 < width / height < 2.5, "two tiles at most"
        greys = sorted(sample.image.convert("L").tobytes())
        assert greys[0] < 60 and greys[len(greys) // 2] > 230


def test_lines_keep_to_their_tile_limit() -> None:
    for sample in Line(max_tiles=2).samples(40):
        width, height = sample.image.size
        assert 0.4 < width / height < 2.5
        assert abs(width / height - 1) > 0.2 or width * height < 0.5 * TILE_PX**2 * 4


def test_paragraphs_have_two_to_five_lines_from_top_to_bottom() -> None:
    lengths = set()
    for sample in Paragraph().samples(80):
        lines = sample.answer.split("\n")
        lengths.add(len(lines))
        assert len({glyph.top for glyph in sample.glyphs}) == len(lines)
    assert lengths == {2, 3, 4, 5}


def test_a_paragraph_earns_the_share_of_its_characters_that_are_right() -> None:
    task = Paragraph()
    sample = task.sample(0)
    wrong = "~" + sample.answer[1:]
    assert task.score(sample, wrong) == pytest.approx(1 - 1 / len(sample.answer))
    assert task.score(sample, "~" * 3 * len(sample.answer)) == 0.0


def test_an_impossible_tile_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_tiles is 7"):
        Line(max_tiles=7)
