import random

import pytest
from PIL import Image, ImageChops, ImageDraw

from cascadevl.gym import assets
from cascadevl.gym.page import GRIDS, Page, Palette, accents, aspect_limits, palette

PLAIN = Palette(paper=(255, 255, 255), ink=(0, 0, 0), accent=(90, 90, 90))


def test_every_glyph_box_frames_the_ink_of_its_own_character() -> None:
    rng = random.Random(0)
    for face in (*assets.faces("train")[::9], *assets.faces("test")[::5]):
        page = Page.blank(rng, (3, 1), PLAIN, plain=True)
        page.text(page.width / 2, 40, "Hg$1,204.50 Wavy", face=face, height=20, align=0.5)
        alone = Image.new("RGB", page.image.size, PLAIN.paper)
        drawing = ImageDraw.Draw(alone)
        em_px = page.em_px(face, 20)
        above, below = assets.ink_rows_px(face, em_px)
        for char, left, top, _, bottom in page.glyphs:
            assert bottom - top == below - above
            drawing.text((left, top - above), char, PLAIN.ink, assets.font(face, em_px))
        assert ImageChops.difference(alone, page.image).getbbox() is None, face


@pytest.mark.parametrize("align", [0.0, 0.5, 1.0])
def test_a_text_begins_is_centred_or_ends_where_it_is_asked_to(align: float) -> None:
    page = Page.blank(random.Random(1), (2, 1), PLAIN, plain=True)
    left, _, right, _ = page.text(100, 30, "Hg 12", face="train/gym01", height=24, align=align)
    assert right - left == pytest.approx(page.text_width("Hg 12", "train/gym01", 24) * page.scale, abs=1)
    assert left + align * (right - left) == pytest.approx(100 * page.scale, abs=1)
    assert (page.glyphs[0].left, page.glyphs[-1].right) == pytest.approx((left, right), abs=1)


def test_ink_lies_in_the_cell_of_its_character() -> None:
    page = Page.blank(random.Random(1), (2, 1), PLAIN, plain=True)
    page.text(10, 30, "H   g", face="train/gym01", height=24)
    for glyph in page.glyphs:
        cell = page.image.crop((int(glyph.left), int(glyph.top), int(glyph.right), int(glyph.bottom)))
        rows = ImageChops.invert(cell.convert("L")).getbbox()
        assert rows is not None
        assert rows[1 if glyph.char == "H" else 3] == (0 if glyph.char == "H" else cell.height)


@pytest.mark.parametrize("grid", GRIDS)
def test_pages_keep_the_proportions_for_which_the_tiling_picks_their_grid(grid: tuple[int, int]) -> None:
    low, high = aspect_limits(*grid)
    for aspect in (low * 1.001, high * 0.999):
        nearest = min(GRIDS, key=lambda other: abs(aspect - other[0] / other[1]))
        assert nearest[0] / nearest[1] == grid[0] / grid[1]


def test_text_is_as_high_as_asked_for_and_as_wide_as_measured() -> None:
    page = Page.blank(random.Random(2), (3, 2), PLAIN, plain=True)
    for face in assets.faces("train")[::7]:
        left, top, right, bottom = page.text(5, 5, "Total 12.40", face=face, height=16)
        assert 16 <= (bottom - top) / page.scale + 1 < 19
        assert right - left == pytest.approx(page.text_width("Total 12.40", face, 16) * page.scale, abs=1)


def test_ink_and_accents_stand_out_from_the_paper() -> None:
    rng = random.Random(3)
    for _ in range(200):
        colours = palette(rng)
        grey = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in (colours.paper, colours.ink)]
        assert abs(grey[0] - grey[1]) > 90
        assert len(set(accents(rng, colours.paper))) == 5
