"""Where an answer stands, by hand."""

from cascadevl.core.task import Glyph
from cascadevl.gym.pointers import answer_glyphs, visual_tokens


def glyphs(text: str) -> list[Glyph]:
    return [Glyph(char, 10.0 * i, 0.0, 10.0 * i + 10, 20.0) for i, char in enumerate(text)]


def test_an_answer_is_found_and_spaces_have_no_glyph() -> None:
    printed = glyphs("Total$5")
    found = answer_glyphs("$ 5", printed)
    assert found == [printed[5], None, printed[6]]


def test_an_answer_that_stands_twice_or_nowhere_has_no_place() -> None:
    assert answer_glyphs("5", glyphs("5x5")) is None
    assert answer_glyphs("6", glyphs("5x5")) is None
    assert answer_glyphs(" ", glyphs("5x5")) is None


def test_tokens_count_tile_by_tile_in_reading_order() -> None:
    # Two tiles side by side, 4×4 tokens each; the picture is 200×100, a token 25 px.
    def at(x: float, y: float) -> Glyph:
        return Glyph("a", x, y, x + 10, y + 10)

    assert visual_tokens(at(0, 0), (200, 100), (2, 1), 4) == [0]
    assert visual_tokens(at(80, 80), (200, 100), (2, 1), 4) == [15]
    assert visual_tokens(at(110, 30), (200, 100), (2, 1), 4) == [16 + 4]


def test_a_high_glyph_lies_in_several_rows() -> None:
    assert visual_tokens(Glyph("a", 0, 0, 10, 50), (100, 100), (1, 1), 4) == [0, 4 * 1]
