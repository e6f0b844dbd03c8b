from PIL import Image, ImageChops

from cascadevl.core.boxes import format_boxes, parse_boxes
from cascadevl.gym.locate import Locate
from cascadevl.scoring.boxes import iou


def test_the_answer_is_the_box_in_the_official_form() -> None:
    for sample in Locate().samples(60):
        assert sample.answer == format_boxes([sample.facts["box"]], *sample.image.size)
        (parsed,) = parse_boxes(sample.answer, *sample.image.size)
        assert iou(parsed, sample.facts["box"]) > 0.9


def test_the_score_is_half_of_the_union() -> None:
    task = Locate()
    sample = task.sample(3)
    box = sample.facts["box"]
    wide = "<box>[[0, 0, 1000, 1000]]</box>"
    share = (box.right - box.left) * (box.bottom - box.top) / (sample.image.width * sample.image.height)
    assert task.score(sample, wide) == float(share >= 0.5)
    assert task.score(sample, "somewhere") == 0.0


def test_the_box_touches_the_edges_of_the_shape() -> None:
    checked = 0
    for sample in Locate(split="test").samples(120):
        corners = {sample.image.getpixel(spot) for spot in ((0, 0), (sample.image.width - 1, 0))}
        if "words" in sample.facts or len(corners) > 1 or len(sample.facts["pairs"]) > 1:
            continue
        paper = Image.new("RGB", sample.image.size, corners.pop())
        found = ImageChops.difference(sample.image, paper).getbbox()
        box = sample.facts["box"]
        if found and found[0] > 0:
            checked += found == (box.left, box.top, box.right, box.bottom)
    assert checked >= 3


def test_half_of_the_things_are_words() -> None:
    words = sum("word " in sample.question for sample in Locate().samples(200))
    assert 70 < words < 130
