import sys

import pytest
from PIL import Image

from cascadevl.apps.ocr_consensus.pages import find_pages, open_page
from cascadevl.core.errors import MediaError, MissingExtra


def test_folders_are_walked_in_order_and_other_files_left_alone(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no page")
    assert [source.name for source in find_pages([tmp_path])] == ["a", "b", "c"]


def test_every_frame_of_a_tiff_is_a_page(tmp_path):
    frames = [Image.new("L", (4, 4), level) for level in (10, 20, 30)]
    frames[0].save(tmp_path / "scan.tif", save_all=True, append_images=frames[1:])
    sources = find_pages([tmp_path / "scan.tif"])
    assert [source.name for source in sources] == ["scan", "scan-2", "scan-3"]
    assert [open_page(source).getpixel((0, 0)) for source in sources] == [(10,) * 3, (20,) * 3, (30,) * 3]


def test_pages_of_one_stem_get_names_that_last(tmp_path):
    for name in ("x/p.png", "y/p.png", "q.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    names = [source.name for source in find_pages([tmp_path])]
    assert len(set(names)) == 3 and "q" in names
    assert names == [source.name for source in find_pages([tmp_path])]


def test_a_file_named_twice_is_one_page(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    assert len(find_pages([tmp_path / "p.png", tmp_path])) == 1


def test_paths_that_lead_nowhere_are_refused(tmp_path):
    with pytest.raises(MediaError, match="No such page"):
        find_pages([tmp_path / "none.png"])
    with pytest.raises(MediaError, match="holds no pages"):
        find_pages([tmp_path])


def test_a_pdf_names_the_package_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    (tmp_path / "p.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(MissingExtra, match="pip install pypdfium2"):
        find_pages([tmp_path / "p.pdf"])


def test_pages_of_a_pdf_are_rendered(tmp_path):
    pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")
    pages = [Image.new("RGB", (144, 72), colour) for colour in ("white", "black")]
    pages[0].save(tmp_path / "p.pdf", save_all=True, append_images=pages[1:], resolution=72)
    sources = find_pages([tmp_path / "p.pdf"])
    assert [source.name for source in sources] == ["p", "p-2"]
    assert open_page(sources[0]).size == (400, 200)
    assert open_page(sources[1]).getpixel((9, 9)) == (0, 0, 0)


def test_a_pdf_that_cannot_be_opened_is_one_page_that_says_why(tmp_path):
    pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")
    (tmp_path / "p.pdf").write_bytes(b"%PDF-1.4 broken")
    [source] = find_pages([tmp_path / "p.pdf"])
    with pytest.raises(MediaError, match=r"p\.pdf cannot be opened"):
        open_page(source)


def test_a_pdf_with_a_password_is_told_as_such(tmp_path):
    pikepdf = pytest.importorskip("pikepdf", reason="pikepdf is not installed")
    pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")
    pdf = pikepdf.new()
    pdf.add_blank_page()
    pdf.save(tmp_path / "p.pdf", encryption=pikepdf.Encryption(owner="a", user="b"))
    [source] = find_pages([tmp_path / "p.pdf"])
    with pytest.raises(MediaError, match=r"p\.pdf cannot be opened.*password"):
        open_page(source)


def test_a_huge_scan_is_read_smaller(tmp_path):
    Image.new("L", (20_000, 900), 255).save(tmp_path / "wide.png")
    [source] = find_pages([tmp_path / "wide.png"])
    assert open_page(source).size == (5000, 225)
