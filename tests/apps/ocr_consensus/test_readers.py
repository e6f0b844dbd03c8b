import random
import shutil
import stat

import pytest
from PIL import Image, ImageDraw

from cascadevl.apps.ocr_consensus.lines import corners_of
from cascadevl.apps.ocr_consensus.readers import (
    READERS,
    ReaderFailed,
    Span,
    check_installed,
    check_language,
    join_lines,
    read_tsv,
)
from cascadevl.core.errors import ConfigError, MissingExtra
from cascadevl.gym import assets
from cascadevl.scoring.consensus import distance

HEAD = "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext\n"


def test_tesseracts_table_becomes_text_with_boxes():
    rows = [
        "1\t1\t0\t0\t0\t0\t0\t0\t640\t480\t-1\t",
        '5\t1\t1\t1\t1\t1\t10\t20\t30\t8\t96.5\t"Sum',
        "5\t1\t1\t1\t1\t2\t50\t20\t10\t8\t40\t12",
        "5\t1\t1\t1\t2\t1\t10\t40\t30\t8\t90\tnext",
        "5\t1\t1\t2\t1\t1\t10\t80\t30\t8\t90\tlast",
        "5\t1\t1\t2\t1\t2\t10\t80\t30\t8\t90\t ",
    ]
    reading = read_tsv(HEAD + "\n".join(rows) + "\n")
    assert reading.text == '"Sum 12\nnext\n\nlast'
    assert reading.spans[0] == Span(0, 4, (10, 20, 40, 28), 0.965)
    assert [reading.text[span.start : span.end] for span in reading.spans] == ['"Sum', "12", "next", "last"]
    assert read_tsv(HEAD).text == ""


def test_boxes_on_one_height_become_one_line():
    boxes = [(200, 12, 240, 30), (10, 50, 80, 70), (10, 10, 80, 30)]
    reading = join_lines([corners_of(box) for box in boxes], ["42", "below", "Total"], [0.8, 0.9, 0.9])
    assert reading.text == "Total 42\nbelow"
    assert [reading.text[span.start : span.end] for span in reading.spans] == ["Total", "42", "below"]
    assert [span.confidence for span in reading.spans] == [0.9, 0.8, 0.9]


def test_a_missing_reader_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name, way in (("tesseract", "apt install tesseract-ocr"), ("gocr", "apt install gocr")):
        with pytest.raises(MissingExtra, match=way):
            check_installed(name)


def scripted_program(folder, monkeypatch, script: str) -> None:
    program = folder / "gocr"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_a_program_reads_from_its_input_and_its_failures_are_told(tmp_path, monkeypatch):
    from cascadevl.apps.ocr_consensus.readers import Program

    image = Image.new("RGB", (7, 3))
    scripted_program(tmp_path, monkeypatch, "head -c 2; exit 0\n")
    assert READERS["gocr"]().read(image).text == "P5"
    scripted_program(tmp_path, monkeypatch, "echo oh no >&2; exit 4\n")
    with pytest.raises(ReaderFailed, match="gocr ended with 4: oh no"):
        READERS["gocr"]().read(image)
    scripted_program(tmp_path, monkeypatch, "exec sleep 20\n")
    with pytest.raises(ReaderFailed, match=r"killed after 0\.2 s"):
        Program(name="gocr", command=("gocr",), timeout_s=0.2).read(image)


def rendered(seed: int) -> tuple[Image.Image, str]:
    rng = random.Random(seed)
    words = [word for word in assets.words("train") if len(word) > 3]
    lines = [" ".join([*rng.sample(words, 4), str(rng.randint(1000, 9999))]) for _ in range(4)]
    image = Image.new("RGB", (900, 320), "white")
    face = assets.font(assets.faces("train")[0], 32)
    for at, line in enumerate(lines):
        ImageDraw.Draw(image).text((40, 30 + 70 * at), line, "black", face)
    return image, "\n".join(lines)


@pytest.mark.parametrize(("name", "limit"), [("tesseract", 0.02), ("gocr", 0.3), ("ocrad", 0.3)])
def test_installed_programs_read_a_clean_page(name, limit):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    image, truth = rendered(1)
    reading = READERS[name]().read(image)
    assert distance(" ".join(reading.text.split()), " ".join(truth.split())) <= limit
    assert READERS[name]().version
    if name == "tesseract":
        assert all(0 <= span.box[0] < span.box[2] <= 900 for span in reading.spans)
        with pytest.raises(ConfigError, match="tesseract-ocr-xyz"):
            check_language("eng+xyz")


def test_rapidocr_reads_a_clean_page():
    pytest.importorskip("rapidocr", reason="rapidocr is not installed")
    image, truth = rendered(2)
    reading = READERS["rapidocr"]().read(image)
    assert distance(" ".join(reading.text.split()), " ".join(truth.split())) <= 0.05
    assert reading.spans
