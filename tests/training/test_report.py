"""The report and the card say what the run was, and nothing in them can be mistaken for markup."""

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from cascadevl.core.config import evolve
from cascadevl.recipes.sft import tiny
from cascadevl.training.report import Facts, curve, model_card, write_report


def facts(**changes: Any) -> Facts:
    values: dict[str, Any] = {
        "config": evolve(tiny(), data="<script>.jsonl"),
        "rows": [{"step": s, "loss": 4.0 / s, "lr": 0.1, "samples": 3 * s, "tokens": 90 * s} for s in (1, 2, 4)],
        "spec_hash": "abc123",
        "base": "nano",
        "learned": 10,
        "total": 1000,
        "data": [{"name": "mine.jsonl", "rows": 12, "draws": 24}],
        "num_read": 30,
        "bad": {"no <image>": 2},
        "device": "cpu",
        "num_ranks": 2,
    }
    return Facts(**{**values, **changes})


def test_the_report_has_curves_data_settings_and_environment(tmp_path) -> None:
    write_report(tmp_path / "report.html", facts())
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2, "loss and lr; the others have no rows"
    for words in ("mine.jsonl", "24", "no &lt;image&gt;", "abc123", "max_tokens: 1024", "cpu × 2", "from 4 to 1"):
        assert words in page, words
    assert "<script>" not in page
    assert "src=" not in page and "href=" not in page


def test_a_curve_spans_its_box() -> None:
    svg = ElementTree.fromstring(curve([(1, 5.0), (2, 1.0), (3, 3.0)]))
    line = svg.find("polyline")
    assert line is not None
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    xs, ys = zip(*points, strict=True)
    assert xs[0] < xs[1] < xs[2]
    assert ys[0] == min(ys) and ys[1] == max(ys), "the greatest value stands highest"
    assert [text.text for text in svg.findall("text")] == ["1", "5", "1", "3"]
    assert ElementTree.fromstring(curve([(1, 2.0), (2, 2.0)])) is not None, "a flat line has no height to divide by"


@pytest.mark.parametrize("adapter", [False, True])
def test_the_card_names_base_data_spec_and_what_was_not_done(adapter: bool) -> None:
    card = model_card(facts(), adapter=adapter)
    assert f"library_name: {'peft' if adapter else 'transformers'}" in card
    for words in ('base_model: "nano"', "mine.jsonl (12 rows)", "abc123", "2 of 30", "not evaluated"):
        assert words in card


def test_a_run_without_steps_says_so() -> None:
    assert "No step was taken." in model_card(facts(rows=[]))
