import numpy as np
import pytest
from PIL import Image

from cascadevl.apps.ocr_consensus.hosted import Kept
from cascadevl.apps.ocr_consensus.pages import find_pages
from cascadevl.apps.ocr_consensus.readers import Reading, Span
from cascadevl.apps.ocr_consensus.run import Desk, Run
from cascadevl.apps.ocr_consensus.vote import CONFIDENT, compare
from cascadevl.scoring.expectation import expected_error
from tests.apps.ocr_consensus.fakes import Fake, page, word_boxes

BLANK = Image.new("RGB", (200, 100), "white")
LINES = [
    f"{first} {second} word" for first in ("alpha", "beta", "gamma", "delta") for second in ("one", "two", "three")
]


def inked() -> Image.Image:
    values = np.full((100, 200), 255, np.uint8)
    values[40:50, 20:180:2] = 0
    return Image.fromarray(values).convert("RGB")


def sure(text: str, confidence: float) -> Reading:
    return Reading(text, (Span(0, len(text), (0, 0, 10, 10), confidence),))


def test_confidence_is_the_mean_over_characters():
    spans = (Span(0, 1, (0, 0, 1, 1), 0.5), Span(2, 5, (0, 0, 1, 1), 0.9), Span(6, 7, (0, 0, 1, 1)))
    assert Reading("a bcd e", spans).confidence == pytest.approx((0.5 + 3 * 0.9) / 4)
    assert Reading("a").confidence is None


def test_the_confidence_of_one_reader_counts_for_what_is_expected():
    same = [sure("the total is 12", 0.7), sure("the total is 12", 0.2)]
    assert compare(BLANK, [CONFIDENT, "bob"], same).quality.expected_error == pytest.approx(expected_error(0, 0.3))
    assert compare(BLANK, ["ann", "bob"], same).quality.expected_error == expected_error(0)
    assert compare(BLANK, [CONFIDENT, "bob"], [Reading("a"), Reading("a")]).quality.expected_error == expected_error(0)


def test_its_silence_is_no_confidence_at_all_unless_the_page_is_blank():
    silent = [Reading(""), sure("some text", 0.9), sure("some text", 0.9)]
    names = [CONFIDENT, "bob", "cat"]
    assert compare(inked(), names, silent).quality.expected_error == expected_error(0, 1.0)
    assert compare(BLANK, names, [Reading("")] * 3).quality.expected_error == expected_error(0)


def errors_of(reader: int) -> set[int]:
    return {reader, 4 + reader, 8 + reader}


def reading_of(reader: int) -> str:
    """Every reader misreads three lines of its own."""
    return "\n".join(
        line.replace("word", f"w0r{reader}") if at in errors_of(reader) else line for at, line in enumerate(LINES)
    )


@pytest.mark.parametrize("gone", [0, 1, 2, 3])
def test_removing_a_reader_removes_its_doubts_and_nothing_else(gone):
    everyone = {f"reader{at}": Reading(text := reading_of(at), word_boxes(text)) for at in range(4)}
    fewer = {name: each for name, each in everyone.items() if name != f"reader{gone}"}
    whole, part = (compare(BLANK, list(each), list(each.values())) for each in (everyone, fewer))
    assert whole.text == part.text == "\n".join(LINES) + "\n"
    doubtful = [{at for at, line in enumerate(each.quality.per_line) if line.doubt > 0} for each in (whole, part)]
    assert doubtful == [set(range(12)), set(range(12)) - errors_of(gone)]
    for name in fewer:
        texts = [[column.texts[each.readers.index(name)] for column in each.quality.columns] for each in (whole, part)]
        assert texts[0] == texts[1]
    assert part.boxes == whole.boxes


def test_removing_a_reader_asks_no_other_one_again(tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    page(scans / "a.png", 200)

    def run(names: str) -> tuple[list[Fake], dict]:
        staff = [Fake(name, {200: reading_of("abcd".index(name))}) for name in names]
        return staff, Run(out=out, desks=[Desk(readers=[Kept(each, tmp_path / "kept") for each in staff])])(
            find_pages([scans])
        )

    run("abcd")
    staff, report = run("acd")
    assert [each.seen for each in staff] == [[], [], []]
    assert report["pages"][0]["num_readers"] == 3
    staff, _ = run("abcd")
    assert [each.seen for each in staff] == [[], [], [], []], "what the one that comes back has read is still there"


@pytest.mark.parametrize("said", [("12.50", "13.50"), ("13.50", "12.50")])
def test_where_two_stand_against_two_the_one_named_first_decides(said):
    readings = [Reading(f"Total {said[at]}") for at in (0, 1, 1, 0)]
    assert compare(BLANK, ["a", "b", "c", "d"], readings).text == f"Total {said[0]}\n"
