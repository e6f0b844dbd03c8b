import pytest

from cascadevl.core.boxes import Box
from cascadevl.scoring.boxes import grounded, grounding_accuracy, iou


def test_iou_by_hand() -> None:
    left, right = Box(0, 0, 10, 10), Box(5, 0, 15, 10)
    assert iou(left, left) == 1.0
    assert iou(left, right) == pytest.approx(50 / 150)
    assert iou(left, Box(10, 0, 20, 10)) == 0.0
    assert iou(Box(3, 3, 3, 3), Box(3, 3, 3, 3)) == 0.0


def test_grounding_counts_the_first_box_from_one_half_on() -> None:
    reference = Box(0, 0, 100, 50)
    assert grounded("<box>[[0, 0, 500, 500]]</box>", reference, 200, 100)
    assert grounded("<box>[[0, 0, 250, 500]]</box>", reference, 200, 100), "exactly one half"
    assert not grounded("<box>[[0, 0, 240, 500]]</box>", reference, 200, 100)
    assert not grounded("<box>[[900, 900, 999, 999], [0, 0, 500, 500]]</box>", reference, 200, 100)
    assert not grounded("at the top left", reference, 200, 100)


def test_grounding_accuracy_is_the_share_of_right_boxes() -> None:
    answers = ["<box>[[0, 0, 500, 500]]</box>", "nowhere"]
    assert grounding_accuracy(answers, [Box(0, 0, 100, 50)] * 2, [(200, 100)] * 2) == 0.5
