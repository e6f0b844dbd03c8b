import json
import re
import zlib
from pathlib import Path

import pytest
from PIL import Image

from cascadevl.cli.ask import Ask, chat, draw_boxes, read_words, save_overlay, say
from cascadevl.core.boxes import Box
from cascadevl.core.errors import ConfigError, MediaError
from cascadevl.core.generation import Sampling
from cascadevl.preprocessing.image import open_image
from tests.cli.scripted import Scripted

HEADER = b"IHDR" + (50_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
HUGE_PNG = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + HEADER + zlib.crc32(HEADER).to_bytes(4) + bytes(4) + b"IDAT"

MISTAKES = {
    "question empty": ([""], "The question is empty"),
    "question blank": (["picture.png", "  "], "The question is empty"),
    "question forgotten": (["picture.png"], "expected the question after the pictures"),
    "picture missing": (["nowhere.png", "What?"], "nowhere.png"),
    "question not quoted": (["picture.png", "What", "is", "it?"], "quote the question"),
    "text named .png": (["text.png", "What?"], "text.png"),
    "zero bytes": (["zero.png", "What?"], "zero.png"),
    "truncated": (["short.png", "What?"], "short.png"),
    "far too large": (["huge.png", "What?"], "50000"),
    "folder as picture": (["empty", "What?"], "empty"),
    "address as picture": (["http://127.0.0.1/a.png", "What?"], "http"),
    "model unknown": (["--model", "nona", "What?"], "nona"),
    "model on no hub": (["--model", "nobody/nothing", "What?"], "hub"),
    "model is an empty folder": (["--model", "empty", "What?"], "empty"),
    "model is a file": (["--model", "picture.png", "What?"], "is a file"),
    "flag unknown": (["--modle", "nano", "What?"], "--model"),
    "value of the wrong type": (["--max-tiles", "many", "What?"], "--max-tiles"),
    "no tiles": (["--max-tiles", "0", "What?"], "--max-tiles"),
    "temperature negative": (["--temperature", "-1", "What?"], "temperature"),
    "overlay without picture": (["--overlay", "out.png", "What?"], "--overlay"),
    "overlay into no folder": (["--overlay", "no/out.png", "picture.png", "What?"], "does not exist"),
    "overlay of no format": (["--overlay", "out.txt", "picture.png", "What?"], ".png"),
    "batch and words": (["--batch", "a.jsonl", "b.jsonl", "What?"], "--batch"),
    "batch missing": (["--batch", "a.jsonl", "b.jsonl"], "a.jsonl"),
}


@pytest.fixture
def rubbish(tmp_path: Path, picture: Path) -> None:
    (tmp_path / "text.png").write_text("This is not a picture.")
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "short.png").write_bytes(picture.read_bytes()[:200])
    (tmp_path / "huge.png").write_bytes(HUGE_PNG)
    (tmp_path / "empty").mkdir()


@pytest.mark.usefixtures("rubbish")
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_before_torch_loads(name, command, tmp_path):
    words, said = MISTAKES[name]
    before = sorted(tmp_path.rglob("*"))
    ran = command("ask", *words, torch=False)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_answer_streams_to_stdout(command, tiny, picture):
    words = ("ask", "--model", tiny(), "--max-new-tokens", "5", picture, "What is it?")
    ran = command(*words)
    assert ran.code == 0, ran.err
    assert ran.out.endswith("\n")
    assert command(*words).out == ran.out


def test_json_tells_tokens_tiles_spec_and_seconds(command, tiny, picture):
    ran = command("ask", "--model", tiny(), "--json", "--max-tiles", "2", "--max-new-tokens", "5", picture, "What?")
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    assert facts["grids"] == [[2, 1]]
    assert facts["tiles"] == 3
    assert facts["visual_tokens"] % 3 == 0
    assert facts["prompt_tokens"] > facts["visual_tokens"] > 0
    assert 0 < facts["completion_tokens"] <= 5
    assert re.fullmatch("[0-9a-f]{16}", facts["spec_hash"])
    assert facts["finish_reason"] in ("stop", "length", "repetition")
    assert facts["boxes"] == []
    seconds = facts["timings"]
    assert set(seconds) == {"load_s", "preprocess_s", "prefill_s", "decode_s", "total_s"}
    assert seconds["total_s"] >= seconds["load_s"] > 0


def test_chat_reads_questions_from_a_pipe(command, tiny, picture):
    stdin = f"/image {picture}\nWhat is it?\n/image nowhere.png\n/what\nAnd now?\n/quit\nnever asked\n"
    ran = command("ask", "--model", tiny(), "--max-new-tokens", "4", stdin=stdin)
    assert ran.code == 0, ran.err
    assert "nowhere.png" in ran.err
    assert "Unknown command '/what'" in ran.err
    assert "Traceback" not in ran.err


def test_chat_remembers_until_reset(monkeypatch, capsys):
    bundle = Scripted(["A cat.", "Black.", "Hello."])
    lines = iter(["What is it?", "", "Which colour?", "/reset", "Hi!"])
    monkeypatch.setattr("builtins.input", lambda prompt: _next(lines))
    assert chat(bundle, Ask()) == 0  # type: ignore[arg-type]
    assert capsys.readouterr().out == "A cat.\nBlack.\nHello.\n"
    said = [[turn.text for turn in conversation.turns] for conversation, _ in bundle.asked]
    assert said == [["What is it?"], ["What is it?", "A cat.", "Which colour?"], ["Hi!"]]


def test_interrupted_answer_is_forgotten_and_the_chat_goes_on(monkeypatch, capsys):
    bundle = Scripted([KeyboardInterrupt(), "Yes."])
    lines = iter(["Long story?", "Still there?"])
    monkeypatch.setattr("builtins.input", lambda prompt: _next(lines))
    assert chat(bundle, Ask()) == 0  # type: ignore[arg-type]
    assert [turn.text for turn in bundle.asked[1][0].turns] == ["Still there?"]


def _next(lines) -> str:
    try:
        return next(lines)
    except StopIteration:
        raise EOFError from None


def test_sampling_flags_are_the_fields_of_sampling(command):
    ran = command("ask", "--help", torch=False)
    assert ran.code == 0
    for field in Sampling.__dataclass_fields__:
        assert field.replace("_", "-") in ran.out


@pytest.mark.parametrize(
    ("finish_reason", "hint"),
    [("stop", ""), ("length", "--max-new-tokens"), ("repetition", "--no-loop-guard")],
)
def test_cut_answers_say_so_on_stderr(finish_reason, hint, capsys):
    bundle = Scripted(["one two"], finish_reason=finish_reason)
    say(bundle, read_words(["What?"]), Ask())  # type: ignore[arg-type]
    out, err = capsys.readouterr()
    assert out == "one two\n"
    assert hint in err
    assert bool(err) == bool(hint)


def test_boxes_are_pixels_of_the_last_picture(picture, capsys):
    bundle = Scripted(["<ref>total</ref><box>[[100, 500, 200, 1000]]</box>"])
    say(bundle, read_words([str(picture), "Where is the total?"]), Ask(json=True))  # type: ignore[arg-type]
    facts = json.loads(capsys.readouterr().out)
    assert facts["boxes"] == [{"left": 20.0, "top": 50.0, "right": 40.0, "bottom": 100.0, "label": "total"}]


def test_overlay_outlines_the_box(picture, tmp_path):
    black = Image.new("RGB", (200, 100))
    drawn = draw_boxes(black, [Box(20, 50, 40, 90)])
    red = (0xD6, 0x27, 0x28)
    assert [drawn.getpixel(corner) for corner in ((20, 50), (40, 90), (21, 70))] == [red] * 3
    assert drawn.getpixel((30, 70)) == (0, 0, 0)
    assert black.getpixel((20, 50)) == (0, 0, 0)


def test_overlay_is_saved_whole_or_not_at_all(tmp_path, capsys):
    picture = Image.new("RGB", (20, 10))
    save_overlay(picture, [], tmp_path / "out.png")
    assert list(tmp_path.iterdir()) == []
    assert "names no box" in capsys.readouterr().err
    save_overlay(picture, [Box(1, 1, 5, 5, "x")], tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert open_image(tmp_path / "out.png").size == (20, 10)


def test_each_picture_is_opened_once_and_before_the_question_is_asked(picture):
    conversation = read_words([str(picture), str(picture), "Same?"])
    assert [image.source.size for image in conversation.images] == [(200, 100)] * 2
    with pytest.raises(MediaError, match="nowhere"):
        read_words([str(picture), "nowhere.png", "Same?"])


def test_contradicting_flags_are_refused():
    with pytest.raises(ConfigError, match="--batch"):
        Ask(batch=(Path("a"), Path("b")), json=True)
