from dataclasses import dataclass, field

import pytest
from PIL import Image

from cascadevl.apps.ocr_consensus.readers import Reading
from cascadevl.apps.ocr_consensus.review import review
from cascadevl.apps.ocr_consensus.run import read_upright
from cascadevl.apps.ocr_consensus.vote import compare, with_expert
from tests.apps.ocr_consensus.fakes import word_boxes
from tests.apps.ocr_consensus.test_lines import LINES, written

GOOD = "first line of all\nthe second with 12\nand the third"
PAGE = Image.new("RGB", (300, 100), "white")


@dataclass
class Careful:
    """Reads a line, and keeps the sizes of what it was shown."""

    text: str
    name: str = "careful"
    shown: list = field(default_factory=list)

    def review(self, image, candidates, consensus):
        self.shown.append((image.size, candidates, consensus))
        return Reading(self.text)


def transcript(*texts: str):
    names = ["ann", "bob", "cat"][: len(texts)]
    return compare(PAGE, names, [Reading(text, word_boxes(text)) for text in texts])


def test_only_doubtful_lines_are_shown_with_what_was_read_there():
    found = transcript(GOOD, GOOD.replace("12", "17"), GOOD.replace("12", "11"))
    expert = Careful("the second with 72")
    asked = review(expert, PAGE, found)
    [(size, candidates, consensus)] = expert.shown
    assert candidates == ["the second with 12", "the second with 17", "the second with 11"]
    assert consensus == found.quality.per_line[1].text
    assert size[0] < 300 and 18 <= size[1] < 40
    assert asked.num_lines == 1 and 0 < asked.share < 0.4
    assert asked.reading.text == GOOD.replace("12", "72")


def test_the_experts_line_decides_where_all_differ_and_leaves_the_rest():
    found = transcript(GOOD, GOOD.replace("12", "17"), GOOD.replace("12", "11"))
    better = with_expert(found, "careful", review(Careful("the second with 17"), PAGE, found).reading)
    assert better.text == GOOD.replace("12", "17") + "\n"
    assert better.readers[-1] == "careful (expert)"


@pytest.mark.parametrize("texts", [("all of it", "none of it"), ("one two\nthree", "one six\nfour")])
def test_a_page_that_is_doubted_all_over_is_shown_whole(texts):
    found = transcript(*texts)
    expert = Careful("it")
    asked = review(expert, PAGE, found)
    assert expert.shown[0][0] == PAGE.size and asked.num_lines is None and asked.share == 1


def test_without_places_the_whole_page_is_shown():
    found = compare(PAGE, ["ann", "bob"], [Reading(GOOD), Reading(GOOD.replace("12", "17"))])
    assert review(Careful("x"), PAGE, found).num_lines is None


def test_readers_that_find_nothing_where_there_is_ink_do_not_vote():
    inked = written(LINES)
    silent = compare(inked, ["ann", "bob", "cat"], [Reading(""), Reading("some words"), Reading(" \n")])
    assert silent.readers == ("bob",) and silent.quality.doubt == 1 and silent.text == "some words\n"
    assert compare(inked, ["ann", "bob"], [Reading(""), Reading("")]).quality.doubt == 1


def test_on_a_blank_page_finding_nothing_is_right():
    assert compare(PAGE, ["ann", "bob"], [Reading(""), Reading("")]).quality.doubt == 0
    assert compare(PAGE, ["ann", "bob", "cat"], [Reading(""), Reading("~"), Reading("")]).text == "\n"


@dataclass
class Upright:
    """Reads a page whose bright edge is on top; another way up it sees what it will."""

    name: str
    garbage: str
    version: str = "1"
    seen: int = 0

    def read(self, image):
        self.seen += 1
        return Reading("a page of text" if image.getpixel((image.width // 2, 0))[0] > 200 else self.garbage)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_page_is_turned_until_its_readers_agree(degrees):
    page = Image.new("RGB", (60, 40))
    page.paste((255, 255, 255), (0, 0, 60, 4))
    staff = [Upright("ann", "qwrtz"), Upright("bob", "0|_#+")]
    turned, image, found, failed = read_upright(staff, page.rotate(degrees, expand=True))
    assert (degrees + turned) % 360 == 0 and not failed
    assert image.size == (60, 40) and found.text == "a page of text\n"
    assert (staff[0].seen == 1) == (degrees == 0)


def test_a_page_that_nobody_can_read_stays_as_it_lies():
    staff = [Upright("ann", "qwrtz"), Upright("bob", "0|_#+")]
    turned, *_ = read_upright(staff, Image.new("RGB", (60, 40)))
    assert turned == 0 and staff[0].seen == 4
