import json
import re
import shutil
import zlib
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from cascadevl.cli.ask import Ask, chat, read_words, say
from cascadevl.core import messages as core_messages
from cascadevl.core.errors import ConfigError, MediaError
from cascadevl.core.generation import Sampling
from cascadevl.core.messages import Text, Video
from tests.cli.scripted import Scripted
from tests.preprocessing.films import write_video

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
    "overlay on a video": (["--overlay", "out.png", "film.mp4", "What?"], "draws on a picture"),
    "text named .mp4": (["text.mp4", "What?"], "text.mp4"),
    "clip beyond the end": (["--start", "3", "--end", "2", "film.mp4", "What?"], "from 3 s to 2 s"),
    "no frames": (["--num-frames", "0", "film.mp4", "What?"], "num_frames"),
    "clip without a video": (["--start", "1", "picture.png", "What?"], "--start"),
    "batch and a clip": (["--batch", "a.jsonl", "b.jsonl", "--end", "3"], "--batch"),
    "batch and words": (["--batch", "a.jsonl", "b.jsonl", "What?"], "--batch"),
    "batch missing": (["--batch", "a.jsonl", "b.jsonl"], "a.jsonl"),
}


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """An mp4 of 48 × 32 pixels and ten frames in 0.4 s."""
    return write_video(tmp_path / "film.mp4", 10, (48, 32))


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    path = tmp_path / "wide.png"
    Image.new("RGB", (300, 10)).save(path)
    return path


@pytest.fixture
def rubbish(tmp_path: Path, picture: Path, film: Path) -> None:
    (tmp_path / "text.mp4").write_text("This is not a video.")
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
    for field in Sampling.__dataclass_fields__.keys() - {"constraint"}:  # a schema is no flag
        assert field.replace("_", "-") in ran.out


@pytest.mark.parametrize(
    ("finish_reason", "hint"),
    [("stop", ""), ("length", "--max-new-tokens"), ("repetition", "--no-loop-guard")],
)
def test_cut_answers_say_so_on_stderr(finish_reason, hint, capsys):
    bundle = Scripted(["one two"], finish_reason=finish_reason)
    say(bundle, read_words(Ask(words=("What?",))), Ask())  # type: ignore[arg-type]
    out, err = capsys.readouterr()
    assert out == "one two\n"
    assert hint in err
    assert bool(err) == bool(hint)


def test_boxes_are_pixels_of_the_last_picture(picture, wide, capsys):
    bundle = Scripted(["<ref>total</ref><box>[[100, 500, 200, 1000]]</box> <ref>x</ref><box>[[1, 2]]</box>"])
    ask = Ask(words=(str(wide), str(picture), "Where is the total?"), json=True)
    say(bundle, read_words(ask), ask)  # type: ignore[arg-type]
    facts = json.loads(capsys.readouterr().out)
    assert facts["boxes"] == [{"label": "total", "box": [20.0, 50.0, 40.0, 100.0]}]
    assert facts["malformed_boxes"] == ["<box>[[1, 2]]</box>"]


def test_boxes_of_a_phone_picture_are_pixels_of_it_upright(tmp_path, capsys):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "phone.jpg", exif=exif)
    bundle = Scripted(["<box>[[0, 0, 1000, 1000]]</box>"])
    ask = Ask(words=(str(tmp_path / "phone.jpg"), "Where?"), json=True)
    say(bundle, read_words(ask), ask)  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out)["boxes"][0]["box"] == [0, 0, 20, 40]


def test_each_picture_is_opened_once_and_before_the_question_is_asked(picture):
    conversation = read_words(Ask(words=(str(picture), str(picture), "Same?")))
    assert [image.source.size for image in conversation.images] == [(200, 100)] * 2
    with pytest.raises(MediaError, match="nowhere"):
        read_words(Ask(words=(str(picture), "nowhere.png", "Same?")))


def test_videos_are_told_from_pictures_and_take_the_clip(picture, film, tmp_path):
    (tmp_path / "frames").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "frames" / "1.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), 9)])
    shutil.copy(film, tmp_path / "no_suffix")
    words = (film, tmp_path / "frames", tmp_path / "moving.gif", tmp_path / "no_suffix", picture)
    ask = Ask(words=(*map(str, words), "What?"), start=0.2, end=0.3, num_frames=2)
    *media, text = read_words(ask).turns[0].parts
    assert media[:4] == [Video(str(path), 0.2, 0.3, 2) for path in words[:4]]
    assert isinstance(media[4], core_messages.Image) and text == Text("What?")


def test_a_video_is_asked_about_and_boxes_are_pixels_of_its_frames(film, capsys):
    bundle = Scripted(["<box>[[0, 0, 500, 500]]</box>"])
    ask = Ask(words=(str(film), "Where?"), json=True)
    say(bundle, read_words(ask), ask)  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out)["boxes"] == [{"label": "", "box": [0.0, 0.0, 24.0, 16.0]}]


def test_json_tells_the_tiles_of_the_frames(command, tiny, film):
    ran = command("ask", "--model", tiny(), "--json", "--num-frames", "3", "--max-new-tokens", "3", film, "What?")
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    assert (facts["tiles"], facts["grids"]) == (3, [[1, 1]] * 3)


def test_contradicting_flags_are_refused():
    with pytest.raises(ConfigError, match="--batch"):
        Ask(batch=(Path("a"), Path("b")), json=True)
