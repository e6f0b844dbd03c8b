import sys

import pytest
from PIL import Image

from cascadevl.apps.ocr_consensus import pdf
from cascadevl.apps.ocr_consensus.pages import find_pages
from cascadevl.apps.ocr_consensus.run import Desk, Run
from cascadevl.core.errors import MissingExtra
from tests.apps.ocr_consensus.fakes import page
from tests.apps.ocr_consensus.test_run import BAD, GOOD, readers


def facts(*words: tuple[str, tuple[float, float, float, float] | None]) -> dict:
    tokens = [{"text": text, "box": box, "space": "" if text in ",." else " "} for text, box in words]
    return {"lines": [{"box": [0, 0, 200, 20], "tokens": tokens}]}


@pytest.fixture
def pdfium():
    pytest.importorskip("pikepdf", reason="pikepdf is not installed")
    return pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")


def test_words_are_found_where_they_stand_in_every_script(pdfium, tmp_path):
    words = [
        ("Größe", (20, 10, 80, 30)),
        ("1,284.50", (100, 10, 180, 30)),
        ("漢字", (20, 60, 60, 80)),
        (".", (60, 60, 66, 80)),
        ("", None),
    ]
    pdf.write_page(tmp_path / "p.pdf", Image.new("RGB", (400, 200), "white"), facts(*words))
    found = pdfium.PdfDocument(tmp_path / "p.pdf")
    text = found[0].get_textpage()
    assert text.get_text_range().split() == ["Größe", "1,284.50", "漢字."]
    points = 842 / 400
    assert found[0].get_size() == pytest.approx((842, 421), abs=0.5)
    inside = text.get_text_bounded(left=95 * points, bottom=421 - 35 * points, right=190 * points, top=421 - 5 * points)
    assert inside.strip() == "1,284.50"
    found.close()


def test_the_text_is_not_seen(pdfium, tmp_path):
    pdf.write_page(tmp_path / "p.pdf", Image.new("RGB", (400, 200), "white"), facts(("word", (20, 10, 80, 30))))
    found = pdfium.PdfDocument(tmp_path / "p.pdf")
    assert found[0].render(scale=1).to_pil().convert("L").getextrema()[0] > 250
    found.close()


def test_a_run_writes_one_pdf_for_every_file(pdfium, tmp_path):
    page(tmp_path / "one.png", GOOD)
    frames = [Image.new("L", (100, 50), level) for level in (GOOD, BAD)]
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    out = tmp_path / "out"
    staff = [Desk(readers=readers())]
    Run(out=out, desks=staff)(find_pages([tmp_path / "one.png", tmp_path / "two.tif"]))
    assert not list(out.glob("*.pdf"))
    Run(out=out, desks=staff, pdf=True)(find_pages([tmp_path / "one.png", tmp_path / "two.tif"]))
    assert sorted(path.name for path in out.glob("*.pdf")) == ["one.pdf", "two.pdf"]
    found = pdfium.PdfDocument(out / "two.pdf")
    assert len(found) == 2 and "well" in found[0].get_textpage().get_text_range()
    found.close()


def test_without_pikepdf_the_error_names_it_before_a_page_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pikepdf", None)
    page(tmp_path / "one.png", GOOD)
    staff = readers()
    with pytest.raises(MissingExtra, match="pip install pikepdf"):
        Run(out=tmp_path / "out", desks=[Desk(readers=staff)], pdf=True)(find_pages([tmp_path / "one.png"]))
    assert staff[0].seen == []
