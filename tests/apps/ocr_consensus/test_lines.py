import math
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cascadevl.apps.ocr_consensus.cleaning import cleaned, has_ink
from cascadevl.apps.ocr_consensus.lines import box_of, corners_of, crop, find_lines, rows, slope
from cascadevl.apps.ocr_consensus.readers import join_lines
from cascadevl.gym import assets


def askew(box, degrees: float) -> Any:
    """The corners of a box on a page that is turned clockwise around its corner."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = corners_of(box)
    return tuple(
        number
        for x, y in zip(points[::2], points[1::2], strict=True)
        for number in (x * cos - y * sin, x * sin + y * cos)
    )


def said(lines, texts) -> str:
    return join_lines(lines, texts, [None] * len(texts)).text


@pytest.mark.parametrize("degrees", [0, 4, -4])
def test_lines_askew_are_read_one_after_the_other(degrees):
    boxes = [(10, 100 + 30 * at, 700, 124 + 30 * at) for at in range(6)]
    lines = [askew(box, degrees) for box in boxes]
    assert slope(lines) == pytest.approx(math.radians(degrees))
    assert rows([lines[at] for at in (3, 0, 5, 1, 4, 2)]) == [[1], [3], [5], [0], [4], [2]]


def test_a_label_and_its_amount_are_one_line():
    lines = [corners_of((10, 10 + 40 * at, 200, 30 + 40 * at)) for at in range(4)]
    lines += [corners_of((400, 12 + 40 * at, 470, 30 + 40 * at)) for at in range(4)]
    assert said(lines, ["tea", "milk", "bread", "total", "1.00", "2.00", "3.00", "6.00"]) == (
        "tea 1.00\nmilk 2.00\nbread 3.00\ntotal 6.00"
    )


def test_columns_of_prose_are_read_one_after_the_other_below_their_heading():
    lines = [corners_of((10, 0, 600, 20))]
    lines += [corners_of((10, 40 * at, 280, 40 * at + 20)) for at in (1, 2, 3)]
    lines += [corners_of((320, 40 * at + 5, 600, 40 * at + 25)) for at in (1, 2, 3)]
    assert said(lines, ["Title", "a", "b", "c", "d", "e", "f"]) == "Title\na\nb\nc\nd\ne\nf"


def test_a_line_is_cut_out_straight():
    image = Image.new("L", (300, 200), 255)
    draw = ImageDraw.Draw(image)
    corners = askew((40, 40, 240, 60), 10)
    draw.polygon(list(zip(corners[::2], corners[1::2], strict=True)), fill=0)
    line = np.asarray(crop(image, corners))
    assert abs(line.shape[0] - 20) <= 1 and abs(line.shape[1] - 200) <= 1
    assert (line[2:-2, 2:-2] < 60).all()
    wide = np.asarray(crop(image, corners, margin=0.5))
    assert wide.shape[0] >= 39 and (wide[:6] > 200).all() and (wide[-6:] > 200).all()


def test_an_upright_line_is_cut_out_to_the_pixel():
    image = Image.fromarray(np.arange(200 * 100, dtype=np.uint32).astype(np.uint8).reshape(100, 200))
    assert crop(image, corners_of((20, 30, 60, 45))).tobytes() == image.crop((20, 30, 60, 45)).tobytes()


def written(lines: list[str], ink: int = 0, paper: int = 255) -> Image.Image:
    image = Image.new("L", (900, 80 + 60 * len(lines)), paper)
    for at, line in enumerate(lines):
        ImageDraw.Draw(image).text((40, 40 + 60 * at), line, ink, assets.font(assets.faces("train")[0], 30))
    return image


LINES = ["some words on a line", "and others, on the next one", "which is followed by a third"]


@pytest.mark.parametrize("degrees", [0, 2, -3])
def test_lines_are_found_by_their_ink(degrees):
    found = find_lines(written(LINES).rotate(-degrees, fillcolor=255))
    assert len(found) == 3
    assert math.degrees(slope(found)) == pytest.approx(degrees, abs=0.6)
    tops = [box_of(line)[1] for line in found]
    assert tops == sorted(tops)
    assert find_lines(Image.new("L", (200, 100), 255)) == []


def test_ink_is_seen_on_noisy_and_faded_pages_and_not_on_empty_ones():
    numbers = np.random.default_rng(0)

    def noisy(image: Image.Image, grain: float = 10) -> Image.Image:
        grey = np.asarray(image) + numbers.normal(0, grain, image.size[::-1])
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8))

    assert has_ink(written(LINES)) and has_ink(noisy(written(LINES, ink=180, paper=220)))
    blank = Image.new("L", (900, 260), 220)
    assert not has_ink(blank) and not has_ink(noisy(blank))
    assert has_ink(noisy(blank, grain=40)), "in so much noise a line may be lost"
    assert not has_ink(Image.linear_gradient("L").resize((900, 260))), "a shadow is no ink"


@pytest.mark.parametrize("top", [40, 1320])
def test_a_lone_line_near_the_border_is_ink(top):
    page = Image.new("L", (1000, 1400), 255)
    page.paste(0, (200, top, 800, top + 30))
    assert has_ink(page)


def test_cleaning_evens_out_a_shadow_and_keeps_the_size():
    page = np.asarray(written(LINES), dtype=np.float32)
    shaded = Image.fromarray((page * np.linspace(1, 0.3, 900)).astype(np.uint8))
    clean = np.asarray(cleaned(shaded), dtype=np.float32)
    assert clean.shape == page.shape
    paper = clean[page == 255]
    assert paper.std() < 0.4 * np.asarray(shaded, dtype=np.float32)[page == 255].std()
    assert clean[page == 0].mean() < paper.mean() - 80


def test_specks_are_filtered_and_a_clean_page_is_left_sharp():
    numbers = np.random.default_rng(0)
    page = np.asarray(written(LINES))
    specked = np.where(numbers.random(page.shape) < 0.03, numbers.choice([0, 255], page.shape), page).astype(np.uint8)
    far = page == 255
    far &= np.roll(far, 3, 0) & np.roll(far, -3, 0) & np.roll(far, 3, 1) & np.roll(far, -3, 1)
    assert np.asarray(cleaned(Image.fromarray(specked)))[far].min() > 100
    assert np.asarray(cleaned(Image.fromarray(page)))[page == 0].max() < 100
