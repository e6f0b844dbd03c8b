"""Boxes drawn on a picture: where they belong, readable, saved whole or not at all."""

import pytest
from PIL import Image, ImageChops

from cascadevl.cli.overlay import check_overlay, draw_boxes, save_overlay
from cascadevl.core.boxes import Box
from cascadevl.core.errors import ConfigError
from cascadevl.preprocessing.image import open_image


def test_overlay_outlines_the_box(picture, tmp_path):
    black = Image.new("RGB", (200, 100))
    drawn = draw_boxes(black, [Box(20, 50, 40, 90)])
    red = (0xD6, 0x27, 0x28)
    assert [drawn.getpixel(corner) for corner in ((20, 50), (40, 90), (21, 70))] == [red] * 3
    assert drawn.getpixel((30, 70)) == (0, 0, 0)
    assert black.getpixel((20, 50)) == (0, 0, 0)


def test_overlay_is_saved_whole_or_not_at_all(tmp_path, capsys):
    picture = Image.new("RGB", (20, 10))
    save_overlay(picture, [], tmp_path / "out.png")
    assert list(tmp_path.iterdir()) == []
    assert "names no box" in capsys.readouterr().err
    save_overlay(picture, [Box(1, 1, 5, 5, "x")], tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert open_image(tmp_path / "out.png").size == (20, 10)


@pytest.mark.parametrize("box", [Box(150, 0, 199, 20), Box(0, 90, 30, 99), Box(195, 95, 200, 100)])
def test_a_label_is_never_cut_by_the_edge(box):
    black = Image.new("RGB", (200, 100))
    label = Box(box.left, box.top, box.right, box.bottom, "total")
    extra = ImageChops.difference(draw_boxes(black, [label]), draw_boxes(black, [box])).getbbox()
    assert extra is not None
    left, top, right, bottom = extra
    inner = Box(50, 40, 190, 90)
    whole = ImageChops.difference(
        draw_boxes(black, [Box(50, 40, 190, 90, "total")]), draw_boxes(black, [inner])
    ).getbbox()
    assert whole is not None
    assert (right - left, bottom - top) >= (whole[2] - whole[0] - 4, whole[3] - whole[1] - 4)


def test_what_could_not_be_saved_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        check_overlay(tmp_path / "no" / "out.png")
    with pytest.raises(ConfigError, match="png"):
        check_overlay(tmp_path / "out.txt")
