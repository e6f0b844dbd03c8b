"""Where an answer stands, by hand."""

from PIL import Image

from cascadevl.core.task import Glyph, Shown
from cascadevl.gym.pointers import answer_glyphs, answer_tokens, box_edges, covered, visual_tokens


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


def test_a_count_does_not_stand_in_a_longer_number() -> None:
    assert answer_glyphs("3", glyphs("1,234")) is None
    assert answer_glyphs("1", glyphs("1.50")) is None
    apart = [*glyphs("12"), Glyph("3", 60.0, 0.0, 70.0, 20.0), Glyph("4", 70.0, 30.0, 80.0, 50.0)]
    assert answer_glyphs("3", apart) == [apart[2]]


def test_tokens_are_counted_through_all_pictures() -> None:
    # The first picture has two tiles and a thumbnail of 4 tokens each, the second one tile.
    image = Image.new("RGB", (10, 10))
    shown = [Shown(image, tuple(glyphs("no"))), Shown(image, (Glyph("x", 60, 60, 70, 70), Glyph("y", 0, 0, 10, 10)))]
    found = answer_tokens("x y", shown, [(200, 100), (100, 100)], [(2, 1), (1, 1)], 2, True)
    assert found == [[12 + 3], [], [12]]


def test_an_answer_in_two_pictures_has_no_place() -> None:
    image = Image.new("RGB", (10, 10))
    shown = [Shown(image, tuple(glyphs("no")))] * 2
    assert answer_tokens("no", shown, [(20, 20)] * 2, [(1, 1)] * 2, 2, True) == [[], []]
    assert answer_tokens("yes", shown, [(20, 20)] * 2, [(1, 1)] * 2, 2, True) == [[], [], []]


def test_a_place_is_covered_by_the_tokens_whose_middle_it_holds() -> None:
    # Two tiles of 4 x 4 tokens side by side: 8 x 4 cells of 10 px. The place spans columns 3-4 and row 1.
    assert covered(Glyph("", 32, 12, 48, 18), (80, 40), (2, 1), 4) == [7, 20]


def test_a_place_smaller_than_a_token_is_covered_by_the_one_around_it() -> None:
    assert covered(Glyph("", 1, 1, 3, 3), (80, 40), (2, 1), 4) == [0]


def test_each_number_of_a_box_is_seen_along_its_edge() -> None:
    # two tiles of 4 x 4 tokens of 10 px side by side, then the thumbnail, whose tokens are 20 px wide
    place = Glyph("", 12, 6, 52, 38)
    in_tiles = [[5, 9, 13], [1, 2, 3, 16], [21, 25, 29], [13, 14, 15, 28]]
    in_thumbnail = [[36, 40, 44], [33, 34], [38, 42, 46], [45, 46]]
    assert box_edges(place, (80, 40), (2, 1), 4, False) == in_tiles
    assert box_edges(place, (80, 40), (2, 1), 4, True) == in_thumbnail
