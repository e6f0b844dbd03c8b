"""Boxes: text and pixels, there and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.core.boxes import Box, Grounded, format_boxes, parse_boxes, read_boxes

SIDES = st.integers(1, 6000)
SHARES = st.floats(0, 1)


def test_the_official_form_by_hand() -> None:
    text = format_boxes([Box(64, 48, 320, 240), Box(0, 0, 640, 480)], 640, 480)
    assert text == "<box>[[100, 100, 500, 500], [0, 0, 1000, 1000]]</box>"


@given(SIDES, SIDES, st.lists(st.tuples(SHARES, SHARES, SHARES, SHARES), min_size=1, max_size=4))
def test_text_and_back_moves_no_edge_by_more_than_a_pixel_or_half_a_thousandth(
    width: int, height: int, shares: list[tuple[float, float, float, float]]
) -> None:
    boxes = [Box(min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height) for a, b, c, d in shares]
    read = parse_boxes(format_boxes(boxes, width, height), width, height)
    assert len(read) == len(boxes)
    for box, again in zip(boxes, read, strict=True):
        for edge, side in (("left", width), ("right", width), ("top", height), ("bottom", height)):
            assert abs(getattr(box, edge) - getattr(again, edge)) <= max(1, side / 2000 + 1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<ref>a cat</ref><box>[[100, 200, 300, 400]]</box>", [Box(64, 96, 192, 192, "a cat")]),
        ("<box>[100,200,300,400]</box>", [Box(64, 96, 192, 192)]),
        ("It is here: <box>[[ 100,\n200, 300 , 400 ]]</box>.", [Box(64, 96, 192, 192)]),
        ("<box>[[300, 400, 100, 200]]</box>", [Box(64, 96, 192, 192)]),
        ("<box>[[-50, 0, 2000, 1000]]</box>", [Box(0, 0, 640, 480)]),
        (
            "<ref>a</ref><box>[[0, 0, 100, 100], [100, 100, 200, 200]]</box> <ref>b</ref> <box>[[0, 0, 0, 0]]</box>",
            [Box(0, 0, 64, 48, "a"), Box(64, 48, 128, 96, "a"), Box(0, 0, 0, 0, "b")],
        ),
    ],
)
def test_forms_that_models_write_are_read(text: str, expected: list[Box]) -> None:
    assert parse_boxes(text, 640, 480) == expected


@given(st.text(alphabet="<>[]/refbox0123456789,.- \n", max_size=80) | st.text(max_size=60))
def test_nonsense_gives_boxes_inside_the_picture_or_none(text: str) -> None:
    for box in parse_boxes(text, 640, 480):
        assert 0 <= box.left <= box.right <= 640
        assert 0 <= box.top <= box.bottom <= 480


@pytest.mark.parametrize(
    "text",
    [
        *("", "no box at all", "<box></box>", "<box>[[1, 2, 3]]</box>", "<box>[[a, b, c, d]]</box>"),
        *("[[1, 2, 3, 4]]", "<box>[[1, 2, 3, 4]]", "<ref>x</ref>", "<box>[[0.1, 0.2, 0.3, 0.4]]</box>"),
    ],
)
def test_text_without_a_whole_box_gives_none(text: str) -> None:
    assert parse_boxes(text, 640, 480) == []


def test_absurdly_long_numbers_and_texts_are_no_way_to_stop_the_parser() -> None:
    assert parse_boxes(f"<box>[[{'9' * 10_000}, 0, 0, 0]]</box>", 640, 480) in ([], [Box(0, 0, 640, 0)])
    assert parse_boxes("<ref>" * 20_000, 640, 480) == []
    assert parse_boxes("<box>" * 20_000 + " " * 20_000, 640, 480) == []


def test_each_box_element_is_told_with_its_label_and_what_is_malformed_in_it() -> None:
    text = (
        "I see <ref>a cat</ref><box>[[0, 0, 500, 500], [500, 500, 1000, 1000]]</box>, <box>[[0, 0, 100, 100]]</box>, "
        "<ref>a dog</ref><box>[[1, 2, 3]]</box> and <ref>both</ref> <box>[[0, 0, 10, 10], [a, b]]</box>, "
        "<ref>none</ref>, <box></box> <ref>cut</ref><box>[[1, 2, 3, 4]"
    )
    assert read_boxes(text, 100, 100) == [
        Grounded("a cat", (Box(0, 0, 50, 50, "a cat"), Box(50, 50, 100, 100, "a cat"))),
        Grounded("", (Box(0, 0, 10, 10),)),
        Grounded("a dog", (), "<box>[[1, 2, 3]]</box>"),
        Grounded("both", (Box(0, 0, 1, 1, "both"),), "<box>[[0, 0, 10, 10], [a, b]]</box>"),
        Grounded("", (), "<box></box>"),
        Grounded("cut", (), "<box>[[1, 2, 3, 4]"),
    ]


@given(st.text(alphabet="<>[]/refbox0123456789,.- \n", max_size=80))
def test_no_box_element_is_swallowed(text: str) -> None:
    text = f"{text}<box>{text}"
    found = read_boxes(text, 640, 480)
    assert len(found) == text.count("<box>")
    assert all(grounded.boxes or grounded.malformed for grounded in found)
    assert [box for grounded in found for box in grounded.boxes] == parse_boxes(text, 640, 480)
