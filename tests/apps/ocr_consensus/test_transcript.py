import json
import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from cascadevl.apps.ocr_consensus.readers import Reading, Span
from cascadevl.apps.ocr_consensus.report import index_html, page_html
from cascadevl.apps.ocr_consensus.transcript import Transcript, union
from cascadevl.scoring.consensus import score
from tests.apps.ocr_consensus.fakes import word_boxes

TEXTS = ("Sum <b> 12\nend", "Sum <b> 12\nend", "Sum <b> 17\nend")


@pytest.fixture
def transcript() -> Transcript:
    readings = [Reading(TEXTS[0]), Reading(TEXTS[1], word_boxes(TEXTS[1])), Reading(TEXTS[2])]
    return Transcript.of((200, 100), ("ann", "bob", "cat"), readings, score(TEXTS))


def token(transcript: Transcript, text: str) -> dict:
    [found] = [each for line in transcript.facts()["lines"] for each in line["tokens"] if each["text"] == text]
    return found


def test_tokens_have_the_boxes_of_a_reader_who_tells(transcript):
    assert token(transcript, "12")["box"] == [80, 0, 100, 18]
    assert token(transcript, "end")["box"] == [0, 20, 30, 38]
    assert [line["box"] for line in transcript.facts()["lines"]] == [[0, 0, 100, 18], [0, 20, 30, 38]]


def test_a_token_of_a_line_box_takes_its_part_of_it():
    text = "abcd 12"
    reading = Reading(text, (Span(0, 7, (0, 0, 70, 10)),))
    found = Transcript.of((100, 50), ("a", "b"), [reading, Reading(text)], score([text, text]))
    assert found.boxes == ((0, 0, 40, 10), (50, 0, 70, 10))


def test_without_any_box_the_page_itself_is_the_place():
    found = Transcript.of((100, 50), ("a", "b"), [Reading("x"), Reading("y")], score(["x", "y"]))
    assert found.boxes == (None,)
    assert "bbox 0 0 100 50; x_wconf 50" in found.hocr("p.png")


def test_json_tells_who_read_what(transcript):
    facts = json.loads(json.dumps(transcript.facts()))
    assert facts["text"] == "Sum <b> 12\nend\n"
    candidates = token(transcript, "12")["candidates"]
    assert [(each["text"], each["readers"]) for each in candidates] == [("12", ["ann", "bob"]), ("17", ["cat"])]
    assert [reader["name"] for reader in facts["readers"]] == ["ann", "bob", "cat"]
    assert facts["medoid"] in ("ann", "bob")


def test_markdown_has_a_footnote_per_doubt(transcript):
    body, note = transcript.markdown().split("\n\n")
    assert body == "Sum <b> 12[^1]  \nend"
    assert re.fullmatch(r"\[\^1\]: `12` \d+%, `17` \d+%\n", note)


def test_hocr_is_xml_with_boxes_and_confidences(transcript):
    tree = ElementTree.fromstring(transcript.hocr('odd "name".png'))
    words = [each for each in tree.iter() if each.get("class") == "ocrx_word"]
    assert "".join("".join(each.itertext()) for each in words if each.text) == "Sum12end"
    assert words[-1].get("title") == "bbox 0 20 30 38; x_wconf 100"
    number = next(each for each in words if each.text == "12")
    assert re.fullmatch(r"bbox 80 0 100 18; x_wconf \d\d", number.get("title", ""))
    assert len([each for each in tree.iter() if each.get("class") == "ocr_line"]) == 2


def test_union_ignores_what_is_unknown():
    assert union([None, (1, 2, 3, 4), (0, 3, 2, 9)]) == (0, 2, 3, 9)
    assert union([None]) is None


def test_the_page_needs_nothing_beside_it_and_its_text_cannot_break_out(transcript):
    evil = {**transcript.facts(), "text": "</script><script>alert(1)</script> @@DATA@@"}
    page = page_html('a<b>"', Image.new("RGB", (200, 100)), evil, shown=0.05)
    assert page.count("<script") == 2 and page.count("</script>") == 2
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page) and "http" not in page.replace("data:image", "")
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data)["text"] == evil["text"]
    assert "<title>a&lt;b&gt;&quot;</title>" in page


def test_the_index_links_pages_and_tells_errors():
    row = {
        "name": "p1",
        "expected_error": 0.2,
        "unconfirmed": 0.5,
        "doubt": 0.5,
        "number_doubt": 0,
        "num_doubts": 3,
        "num_readers": 2,
        "doubtful": True,
    }
    rows = [{"name": "<x>", "error": "a < b"}, {**row, "failed": {"bob": "no"}, "expert": "sage"}]
    page = index_html(rows, {"pages": 2})
    assert '<a href="p1.html">p1</a>' in page and "2 → sage" in page and "bob" in page
    assert "<x>" not in page and "a &lt; b" in page
