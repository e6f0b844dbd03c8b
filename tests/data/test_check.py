"""Malformed data sets, each of which gives a named row and a fix; what can be mended is mended."""

import base64
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import ExifTags, Image

from cascadevl.checkpoints.load import load_processor
from cascadevl.core.errors import DataError, MediaError
from cascadevl.core.messages import Conversation, Text, Turn, Video
from cascadevl.core.messages import Image as Shown
from cascadevl.data.check import Check, Checked, Tally
from cascadevl.data.lengths import Lengths
from cascadevl.data.pictures import picture_size
from cascadevl.data.sources import open_data


def turns(question: str = "<image>\nWhat?", answer: Any = "A cat.") -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def row(**changes: Any) -> dict[str, Any]:
    fields = {"image": "cat.jpg", "conversations": turns(), **changes}
    return {key: value for key, value in fields.items() if value is not ...}


def lines(*rows: Any) -> bytes:
    return b"".join(each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n" for each in rows)


def picture_bytes() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((40, 20)).convert("RGB").save(file, "PNG")
    return file.getvalue()


GOOD = row()


class Case(NamedTuple):
    data: bytes
    where: str
    kind: str
    problem: str
    """A part of what is said."""
    fix: str
    """A part of what is to be done."""
    mendable: bool = False


def second(bad: Any, *words: str, mendable: bool = False) -> Case:
    """Two rows, of which the second is bad."""
    kind, problem, fix = words
    return Case(lines(GOOD, bad), "x.jsonl:2", kind, problem, fix, mendable)


PICTURE = picture_bytes()
CAT = {"type": "image_url", "image_url": {"url": "cat.jpg"}}
CALL = {"id": "x", "type": "function", "function": {"name": "add", "arguments": "{1, 2}"}}
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]

CASES = {
    # The file.
    "not JSON": second(b'{"image": "cat.jpg", \n', "not JSON", "at character 21", "one JSON object"),
    "not an object": second(["cat.jpg"], "not an object", "a JSON list", "an object"),
    "empty row in the middle": Case(lines(GOOD, b"\n", GOOD), "x.jsonl:2", "empty row", "is empty", "Delete the line"),
    "byte order mark": Case(
        b"\xef\xbb\xbf" + lines(GOOD), "x.jsonl:1", "byte order mark", "byte order mark", "without one", True
    ),
    "zero byte": second(lines(GOOD)[:20] + b"\x00\n", "zero byte", "Byte 21", "again as UTF-8"),
    "latin 1": second(b'{"text": "\xdcber"}\n', "not UTF-8", "Byte 11", "as UTF-8"),
    "carriage returns in a text": second(
        row(conversations=turns("<image>\r\nWhat?")), "spoilt text", "carriage return", "\\n", mendable=True
    ),
    "half a character": second(
        row(conversations=turns(answer="A \ud83d.")), "spoilt text", "character '\\ud83d'", "delete", mendable=True
    ),
    # The form.
    "unknown form": second({"imgae": "cat.jpg", "anser": "A cat."}, "unknown form", "Did you mean", "'conversations'"),
    "mixed forms": second({"messages": MESSAGES}, "mixed forms", "'messages'", "converted copy", mendable=True),
    "preference": second({"question": "?", "chosen": "a", "rejected": "b"}, "unknown form", "preference", "rename"),
    "missing column": Case(
        lines({"question": "What?"}), "x.jsonl:1", "missing column", "'question'", "question and answer"
    ),
    "no turns": second(row(conversations=[]), "no turns", "the list []", "a question and an answer"),
    "turns as text": second(row(conversations="Hi"), "no turns", "the str 'Hi'", "a question and an answer"),
    "text instead of value": second(
        row(conversations=[turns()[0], {"from": "gpt", "text": "A cat."}]),
        *("text for value", "Turn 2", "Rename it to 'value'"),
        mendable=True,
    ),
    # The turns.
    "unknown role": second(
        row(conversations=[{"from": "narrator", "value": "Hm"}]), "unknown role", "narrator", "human"
    ),
    "role of another export": second(
        row(conversations=[turns()[0], {"from": "Bot", "value": "A cat."}]),
        *("unknown role", "Turn 2 has the role 'Bot'", "'assistant'"),
        mendable=True,
    ),
    "empty answer": second(row(conversations=turns(answer=" ")), "empty answer", "Turn 2", "Write the answer"),
    "answer is null": second(row(conversations=turns(answer=None)), "no text", "Turn 2 is missing", "a text"),
    "no answer": second(row(conversations=turns()[:1]), "no answer", "nothing would be learned", "Add an answer"),
    "no question": second(row(image=..., conversations=turns()[1:]), "no question", "the user's", "Add a question"),
    "ends with a question": second(
        row(conversations=[*turns(), {"from": "human", "value": "Sure?"}]),
        *("ends with a question", "No answer follows", "delete"),
        mendable=True,
    ),
    "begins with an answer": second(
        row(conversations=[{"from": "gpt", "value": "Hello!"}, *turns()]),
        *("begins with an answer", "the assistant's", "Begin with a question"),
        mendable=True,
    ),
    "system in the middle": second(
        row(conversations=[*turns(), {"from": "system", "value": "Be brief."}, *turns("And?")]),
        *("conversation", "only the first", "Correct"),
    ),
    "control token": second(
        row(conversations=turns(answer="A cat.<|im_end|>")), "control token", "<|im_end|>", "chat template"
    ),
    # The pictures.
    "too few marks": second(row(image=["cat.jpg"] * 2), "number of images", "mark 1 image(s)", "once for each"),
    "too many marks": second(row(image=...), "number of images", "has 0", "once for each"),
    "several pictures marked nowhere": second(
        row(image=["cat.jpg"] * 2, conversations=turns("What?")),
        *("images not marked", "2 images", "2 times"),
        mendable=True,
    ),
    "mark in an answer": second(
        row(conversations=turns(answer="<image> shows it")), "picture in a turn of the assistant", "<image>", "move it"
    ),
    "images as a text": second(
        row(image=..., images="cat.jpg"), "images are no list", "the str 'cat.jpg'", "into a list", mendable=True
    ),
    "image and images": second(row(images=["dog.jpg"]), "two columns", "'image' and 'images'", "Keep one"),
    "picture is null": second(row(image=["cat.jpg", None]), "no path", "missing", "a path"),
    "remote picture": second(row(image="https://x.org/cat.jpg"), "remote address", "not fetched", "Download"),
    "missing picture": second(row(image="no.jpg"), "missing picture", "no.jpg' does not exist", "relative paths begin"),
    "absolute path of another machine": second(
        row(image="/home/me/pictures/sub/dog.png"),
        "picture elsewhere",
        "does not exist",
        "Give that path",
        mendable=True,
    ),
    "picture without bytes": second(row(image="empty.jpg"), "empty picture", "0 bytes", "Download it again"),
    "picture cut off": second(row(image="cut.jpg"), "damaged picture", "cannot be decoded", "Save or download"),
    "picture is a page": second(row(image="page.jpg"), "damaged picture", "no picture", "leave the row out"),
    "wrong width and height": second(
        row(width=30, height=30),
        "wrong width and height",
        "30×30, the pictures have 40×20",
        "right pictures",
        mendable=True,
    ),
    "missing video": second(
        row(image=..., video="no.mp4", conversations=turns("<video>\nWho?")),
        "missing video",
        "no.mp4",
        "Check the path",
    ),
    "clip that ends before it begins": second(
        row(image=..., video="no.mp4", clip=[3, 1], conversations=turns("Who?")),
        "conversation",
        "must end later",
        "Correct",
    ),
    "clip behind the end": second(
        row(image=..., video="walk.mp4", clip=[9, 12], conversations=turns("Who?")),
        *("damaged video", "the clip begins at 9 s", "Begin earlier"),
    ),
    # All rows.
    "id twice": Case(lines(row(id="a"), row(id="a")), "x.jsonl:2", "id twice", "x.jsonl:1", "of its own", True),
    "number as answer": Case(
        lines({"question": "1 + 1?", "answer": 2}), "x.jsonl:1", "number as answer", "the number 2", "as a text", True
    ),
    "documents with lists of two lengths": Case(
        lines({"texts": ["a", "b"], "images": [None]}), "x.jsonl:1", "number of images", "2 items", "equally long"
    ),
    "result of no call": Case(
        lines({"messages": [*MESSAGES, {"role": "tool", "tool_call_id": "x", "content": "2"}, MESSAGES[1]]}),
        *("x.jsonl:1", "conversation", "Message 3 answers the tool call 'x'", "keep the assistant's message"),
    ),
    "arguments that are no JSON": Case(
        lines({"messages": [MESSAGES[0], {"role": "assistant", "tool_calls": [CALL]}]}),
        *("x.jsonl:1", "conversation", "Message 2: 'tool_calls' must be", "Correct"),
    ),
    "an answer that is not to be learned": Case(
        lines({"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0}, *MESSAGES]}),
        *("x.jsonl:1", "weight", "Message 2 has the weight 0", "Cut the conversation"),
    ),
    "no tile at all": Case(
        lines({"messages": [{"role": "user", "content": [{**CAT, "max_tiles": -1}]}, MESSAGES[1]]}),
        *("x.jsonl:1", "tile limit", "the int -1", "from 1"),
    ),
    "sound": second(row(audio="cat.wav"), "unread field", "'audio'", "Leave the row out"),
    "preference beside messages": Case(
        lines({"messages": MESSAGES, "rejected_response": "Hm"}),
        *("x.jsonl:1", "unread field", "'rejected_response'", "delete the field"),
    ),
    "two system turns": second(
        row(system="Be brief.", conversations=[{"from": "system", "value": "Be long."}, *turns()]),
        *("two system turns", "'system' and a system turn", "Keep one"),
    ),
    "turns as JSON in a text": second(
        row(conversations=json.dumps(turns())), "turns as text", "written as a text", "as a list", mendable=True
    ),
    "half a pair": Case(
        lines({"question": "And?", "answer": "No.", "history": [["What?"]]}),
        *("x.jsonl:1", "no pair", "Pair 1 of 'history'", "its answer"),
    ),
    "picture in base64": second(
        row(image=base64.b64encode(PICTURE).decode()), "bare base64", "in base64", "before it", mendable=True
    ),
    "picture is an empty text": second(
        row(image="", conversations=turns("Hi")), "empty path", "an empty text", "Leave it out", mendable=True
    ),
    "mark that is spelt otherwise": second(
        row(conversations=turns("<Image>\nWhat?")), "odd mark", "'<Image>'", "Write <image>", mendable=True
    ),
    "number of thousands of digits": Case(
        b'{"id": ' + b"9" * 5000 + b', "text": "A cat."}\n', "x.jsonl:1", "not JSON", "5000 digits", "JSON object"
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some pictures, good and bad."""
    picture = Image.linear_gradient("L").resize((40, 20)).convert("RGB")
    picture.save(tmp_path / "cat.jpg")
    (tmp_path / "sub").mkdir()
    picture.save(tmp_path / "sub" / "dog.png")
    data = (tmp_path / "cat.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    frames = [picture.rotate(angle) for angle in (0, 90, 180)]
    frames[0].save(tmp_path / "walk.mp4", "GIF", save_all=True, append_images=frames[1:], duration=1000)
    return tmp_path


def look(path: Path, **settings: Any) -> list[Checked]:
    return list(Check(**settings)(open_data(path)))


def test_there_are_twenty_malformed_data_sets():
    assert len(CASES) >= 20


@pytest.mark.parametrize("name", CASES)
def test_each_malformed_data_set_gives_a_named_row_and_a_fix(name, folder):
    case = CASES[name]
    (folder / "x.jsonl").write_bytes(case.data)
    (found,) = [checked for checked in look(folder / "x.jsonl") if checked.problems]
    (problem,) = found.problems
    assert (problem.where, problem.kind) == (case.where, case.kind)
    assert case.problem in problem.problem
    assert case.fix in f"{problem.problem} {problem.fix}"
    assert (found.conversation is not None) == case.mendable


SEEN_BY_ALL_ROWS = ("id twice", "wrong width and height")
SEEN_IN_FILES = (
    "clip behind",
    "missing picture",
    "missing video",
    "absolute path",
    "picture without",
    "picture cut",
    "picture is a page",
)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith((*SEEN_BY_ALL_ROWS, *SEEN_IN_FILES))])
def test_reading_the_row_refuses_it_with_the_same_words(name, folder):
    """What needs neither the pictures nor the other rows is refused in training too, mendable or not."""
    case = CASES[name]
    (folder / "x.jsonl").write_bytes(case.data)
    (found,) = [checked for checked in look(folder / "x.jsonl") if checked.problems]
    with pytest.raises(DataError) as caught:
        open_data(folder / "x.jsonl")[0].source[int(case.where.partition(":")[2]) - 1]
    assert str(caught.value) == str(found.problems[0])


def test_damaged_tars_and_parquet_name_the_row(folder):
    with tarfile.open(folder / "x.tar", "w") as file:
        for name, data in {"1.json": lines(GOOD).strip(), "1.txt": b"", "2.jpg": b"\xff\xd8\xff"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    problems = [problem for checked in look(folder / "x.tar") for problem in checked.problems]
    assert [(problem.where, problem.kind) for problem in problems] == [("x.tar:2", "no text")]

    rows = [{"caption": "A cat.", "image": {"bytes": b"\xff\xd8\xff", "path": None}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "x.parquet")
    (checked,) = look(folder / "x.parquet")
    assert (checked.problems[0].where, checked.problems[0].kind) == ("x.parquet:1", "damaged picture")


def test_good_rows_have_no_problems(folder):
    (folder / "x.jsonl").write_bytes(
        lines(row(id=1, width=40, height=20), row(id=2, image="sub/dog.png")).replace(b"\n", b"\r\n")
    )
    assert [checked.problems for checked in look(folder / "x.jsonl", look="decode")] == [(), ()]


def test_damage_within_a_picture_is_found_by_decoding_alone(folder):
    data = bytearray((folder / "sub" / "dog.png").read_bytes())
    place = data.index(b"IDAT") + 12
    data[place : place + 8] = bytes(8)
    (folder / "holes.png").write_bytes(data)
    (folder / "x.jsonl").write_bytes(lines(row(image="holes.png")))
    assert look(folder / "x.jsonl")[0].problems == ()
    (problem,) = look(folder / "x.jsonl", look="decode")[0].problems
    assert problem.kind == "damaged picture"


def test_samples_without_trained_tokens_or_with_too_many_are_bad(folder):
    (folder / "x.jsonl").write_bytes(lines(GOOD, row(conversations=turns(answer="meow " * 500))))
    lengths = Lengths(load_processor("nano"))
    good, long = look(folder / "x.jsonl", count_tokens=lengths, max_tokens=300)
    assert good.length and good.length.num_trained > 0 and not good.problems
    assert (long.problems[0].kind, long.problems[0].where) == ("too long", "x.jsonl:2")
    assert "at most 300" in long.problems[0].problem

    def nothing(*_: Any) -> Any:
        assert good.length
        return good.length._replace(num_trained=0)

    assert [each.problems[0].kind for each in look(folder / "x.jsonl", count_tokens=nothing)] == [
        "nothing to learn"
    ] * 2


def test_tallies_count_rows_and_not_problems(folder):
    (folder / "x.jsonl").write_bytes(
        lines(GOOD, row(id=1, width=1, height=1), row(id=1, width=2, height=2), row(image="no.jpg"))
    )
    tally = Tally()
    for checked in look(folder / "x.jsonl"):
        tally.add(checked)
    assert (tally.num_rows, tally.num_mended, tally.num_bad, tally.share) == (4, 2, 1, 0.75)
    sizes = tally.problems["wrong width and height"]
    assert (sizes.num_mended, sizes.num_bad, sizes.rows) == (2, 0, ["x.jsonl:2", "x.jsonl:3"])
    assert (tally.problems["missing picture"].num_bad, tally.problems["id twice"].rows) == (1, ["x.jsonl:3"])


def saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_by_header_are_those_of_the_decoded_picture(kind, orientation):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    settings: dict[str, Any] = {} if kind in ("BMP", "GIF") else {"exif": exif}
    variants: list[dict[str, Any]] = [{}, {"progressive": True}, {"quality": 30}] if kind == "JPEG" else [{}]
    for variant in variants:
        data = saved(Image.fromarray(pixels), kind, **settings, **variant)
        assert picture_size(data, "header") == picture_size(data, "decode")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_cut_off_anywhere_is_found(kind):
    data = saved(Image.linear_gradient("L").resize((64, 64)).convert("RGB"), kind)
    for length in range(0, len(data) - 24, 7):  # no pixel of a PNG is in its last bytes
        with pytest.raises(MediaError):
            picture_size(data[:length])


def test_lengths_are_those_of_the_processor(folder):
    """By sizes alone, for one picture, several, none, a tile limit, a video and a document."""
    path, frames = str(folder / "cat.jpg"), [str(folder / "cat.jpg")] * 3
    user: Callable[..., Turn] = lambda *parts: Turn("user", parts)  # noqa: E731
    answer = Turn("assistant", (Text("A cat."),))
    conversations = [
        Conversation((user(Shown(path), Text("What?")), answer)),
        Conversation((user(Shown(path), Shown(path, 1), Text("What?")), answer, user(Text("Sure?")), answer)),
        Conversation((user(Text("What?")), answer)),
        Conversation((user(Video(frames), Text("What?")), answer)),
        Conversation((Turn("assistant", (Text("Once "), Shown(path), Text(" more"))),)),
    ]
    processor = load_processor("nano")
    for conversation in conversations:
        for max_tiles in (None, 2):
            inputs = processor(conversation, max_tiles=max_tiles)
            length = Lengths(processor)(conversation, [(40, 20)] * len(conversation.images), max_tiles)
            trained = int(inputs.trained.sum())
            assert length == (len(inputs.token_ids), inputs.num_visual_tokens, len(inputs.tiles), trained)
