"""`cascadevl data show` and `stats`: a sample as the model sees it, and how long all of them are."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascadevl.checkpoints.load import load_processor
from cascadevl.cli.data_stats import bars
from cascadevl.data.sources import open_data
from cascadevl.preprocessing.spec_file import read_spec


@pytest.fixture
def rows(tmp_path: Path, picture: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    fields = [
        {"question": "What is it?", "answer": "A gradient.", "image": "picture.png"},
        {"question": "One?", "answer": "Yes."},
        {"question": "Lost?", "answer": "Yes.", "image": "nowhere.png"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in fields))
    return path


def test_show_prints_a_row_with_counted_placeholders_and_marked_answers(command, tiny, rows):
    ran = command("data", "show", rows, "1", "--model", tiny())
    assert ran.code == 0, ran.err
    spec = read_spec(tiny())
    assert spec
    assert ran.out.startswith("rows.jsonl:1\n")
    assert f"<img><IMG_CONTEXT>×{3 * spec.visual_tokens_per_tile}</img>" in ran.out
    assert "⟦A gradient.<|im_end|>⟧" in ran.out
    assert "What is it?" in ran.out
    assert "grid 2×1" in ran.out
    assert spec.hash in ran.out


def test_show_takes_several_rows_by_number_and_by_name(command, tiny, rows):
    ran = command("data", "show", rows, "2", "rows.jsonl:1", "--model", tiny(), "--json")
    assert ran.code == 0, ran.err
    facts = [json.loads(line) for line in ran.out.splitlines()]
    assert [each["id"] for each in facts] == ["rows.jsonl:2", "rows.jsonl:1"]
    inputs = load_processor(str(tiny()))(open_data(rows)[0].source[1].conversation)
    assert facts[0]["trained_tokens"] == int(inputs.trained.sum())


def test_show_names_what_is_wrong_with_a_row(command, tiny, rows):
    for words, said in ((("3",), "nowhere.png"), (("4",), "no row '4'"), (("x.jsonl:1",), "no row 'x.jsonl:1'")):
        ran = command("data", "show", rows, *words, "--model", tiny())
        assert ran.code == 2
        assert said in ran.err


def test_show_saves_the_tiles_of_a_picture_and_a_question(command, tiny, picture, tmp_path):
    ran = command("data", "show", picture, "What is it?", "--model", tiny(), "--tiles", "tiles.png")
    assert ran.code == 0, ran.err
    assert "What is it?" in ran.out
    assert "⟦" not in ran.out, "there is no answer to learn"
    side = load_processor(str(tiny())).spec.tile_px
    sheet = Image.open(tmp_path / "tiles.png")
    assert sheet.size == (3 * (side + 4) + 4, side + 8), "a grid of 2×1, and the thumbnail"
    pixels = np.asarray(sheet)
    inputs = load_processor(str(tiny()))([{"role": "user", "content": [{"type": "image", "image": str(picture)}]}])
    for number, tile_CYX in enumerate(inputs.tiles):
        left = number * (side + 4) + 4
        assert (pixels[4 : 4 + side, left : left + side] == tile_CYX.permute(1, 2, 0).numpy()).all()


def test_tiles_of_a_sample_without_pictures_are_refused(command, tiny, rows):
    ran = command("data", "show", rows, "2", "--model", tiny(), "--tiles", "tiles.png")
    assert ran.code == 2
    assert "no pictures" in ran.err


def test_stats_count_what_the_processor_makes(command, tiny, rows):
    ran = command("data", "stats", rows, "--model", tiny(), "--json")
    assert ran.code == 0, ran.err
    (counts,) = json.loads(ran.out)
    processor = load_processor(str(tiny()))
    samples = [processor(open_data(rows)[0].source[index].conversation) for index in range(2)]
    assert (counts["num_samples"], counts["num_bad"]) == (2, 1)
    assert counts["num_tokens"] == sum(len(each.token_ids) for each in samples)
    assert counts["num_visual"] == sum(each.num_visual_tokens for each in samples)
    assert counts["num_trained"] == sum(int(each.trained.sum()) for each in samples)
    assert counts["tiles"] == {"0": 1, "3": 1}
    assert sum(counts["tokens"].values()) == 2
    text = command("data", "stats", rows, "--model", tiny()).out
    assert "tokens of a sample" in text
    assert "█" in text


def test_bars_are_as_long_as_their_counts():
    assert bars(Counter({8: 4, 16: 2}), "≤ ") == [f" ≤ 8 {'█' * 40} 4", f"≤ 16 {'█' * 20 + ' ' * 20} 2"]
    assert bars(Counter()) == []
