"""Each form by hand; written rows read back as the same conversation; schemas accept what is read."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.core.errors import DataError
from cascadevl.core.messages import Conversation, Image, Text, ToolCall, ToolResult, Turn, Video
from cascadevl.data.conversations import FORMS, find_form, read_conversation
from cascadevl.data.rows import Row
from cascadevl.data.write import to_row

ROOT = Path("/data")
CAT, DOG = Image("/data/cat.jpg"), Image("/data/dog.jpg")


def read(fields: dict[str, Any], *, mending: bool = False) -> Conversation:
    form = find_form(fields)
    assert form
    return read_conversation(fields, form, ROOT, Row("x.jsonl:1", mending))


def chat(*turns: Any) -> Conversation:
    roles = ["user", "assistant"] * len(turns)
    parts = [turn if isinstance(turn, tuple) else (turn,) for turn in turns]
    return Conversation(
        tuple(
            Turn(role, tuple(Text(part) if isinstance(part, str) else part for part in each))
            for role, each in zip(roles, parts, strict=False)
        )
    )


def document(*parts: Any) -> Conversation:
    return Conversation((Turn("assistant", tuple(Text(part) if isinstance(part, str) else part for part in parts)),))


def said(*turns: str) -> list[dict[str, str]]:
    return [{"from": ["human", "gpt"][number % 2], "value": turn} for number, turn in enumerate(turns)]


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}

EXAMPLES: dict[str, tuple[dict[str, Any], Conversation]] = {
    "internvl": (
        {"id": 0, "image": "cat.jpg", "width": 3, "height": 2, "conversations": said("<image>\nWhat?", "A cat.")},
        chat((CAT, "What?"), "A cat."),
    ),
    "a picture marked nowhere": (
        {"image": "cat.jpg", "conversations": said("What?", "A cat.", "Sure?", "Yes.")},
        chat((CAT, "What?"), "A cat.", "Sure?", "Yes."),
    ),
    "labels belong to the template": (
        {
            "image": ["cat.jpg", "dog.jpg"],
            "conversations": said("Image-1: <image>\nImage-2: <image>\nWhich barks?", "2"),
        },
        chat((CAT, DOG, "Which barks?"), "2"),
    ),
    "a picture in the second question": (
        {"images": ["cat.jpg", "dog.jpg"], "conversations": said("<image>\nA?", "cat", "And <image>?", "dog")},
        chat((CAT, "A?"), "cat", ("And ", DOG, "?"), "dog"),
    ),
    "video with a clip": (
        {"video": "walk.mp4", "clip": [1, 2.5], "conversations": said("<video>\nWho?", "A dog.")},
        chat((Video("/data/walk.mp4", 1, 2.5), "Who?"), "A dog."),
    ),
    "video as frames": (
        {"video": ["1.jpg", "2.jpg"], "conversations": said("Who?", "A dog.")},
        chat((Video(["/data/1.jpg", "/data/2.jpg"]), "Who?"), "A dog."),
    ),
    "sharegpt with roles": (
        {"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        chat("Hi", "Ho"),
    ),
    "system prompt beside the turns": (
        {"system": "Be brief.", "conversations": said("Hi", "Ho")},
        Conversation((Turn("system", (Text("Be brief."),)), *chat("Hi", "Ho").turns)),
    ),
    "questions before": (
        {"instruction": "And?", "input": "", "output": "No.", "history": [["Hi", "Ho"]], "system_prompt": "Be brief."},
        Conversation((Turn("system", (Text("Be brief."),)), *chat("Hi", "Ho", "And?", "No.").turns)),
    ),
    "pairs of The Cauldron": (
        {"images": ["cat.jpg"], "texts": [{"user": "What?", "assistant": "A cat."}, {"user": "?", "assistant": "!"}]},
        chat((CAT, "What?"), "A cat.", "?", "!"),
    ),
    "picture as Anthropic has it": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                        {"type": "text", "text": "What?"},
                    ],
                },
                {"role": "assistant", "content": "A cat.", "weight": 1},
            ]
        },
        chat((Image("data:image/png;base64,AAAA"), "What?"), "A cat."),
    ),
    "pretrain": (
        {"images": ["cat.jpg"], "conversations": [{"from": "pretrain", "value": "Once.\n<image>\nEnd."}]},
        document("Once.\n", CAT, "\nEnd."),
    ),
    "openai": (
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "cat.jpg"}, "max_tiles": 4},
                        {"type": "text", "text": "What?", "image_url": None},
                    ],
                },
                {"role": "assistant", "content": "A cat."},
            ]
        },
        Conversation(
            (
                Turn("system", (Text("Be brief."),)),
                *chat((Image("/data/cat.jpg", 4), "What?"), "A cat.").turns,
            )
        ),
    ),
    "pictures beside messages": (
        {
            "images": [{"bytes": b"\xff\xd8\xff", "path": None}],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
            ],
        },
        chat((Image(b"\xff\xd8\xff"), "What?"), "A cat."),
    ),
    "tools": (
        {
            "tools": [ADD],
            "messages": [
                {"role": "user", "content": "1 + 1?"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "2"},
                {"role": "assistant", "content": "2."},
            ],
        },
        Conversation(
            (
                Turn("user", (Text("1 + 1?"),)),
                Turn("assistant", (ToolCall('{"name": "add", "arguments": {"a": 1}}', "c1"),)),
                Turn("tool", (ToolResult("2", "c1"),)),
                Turn("assistant", (Text("2."),)),
            )
        ).with_tools([ADD]),
    ),
    "question and answer": (
        {"question": "What?", "answer": "A cat.", "image": "cat.jpg", "system": None},
        chat((CAT, "What?"), "A cat."),
    ),
    "prompt and completion as messages": (
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Ho"}]},
        chat("Hi", "Ho"),
    ),
    "instruction, input, output": (
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        chat("Add.\n1 1", "2"),
    ),
    "caption": ({"file_name": "cat.jpg", "text": "A cat."}, chat((CAT,), "A cat.")),
    "text": ({"text": "Once upon a time."}, document("Once upon a time.")),
    "text with marks": ({"text": "A <image>.", "images": ["cat.jpg"]}, document("A ", CAT, ".")),
    "obelics": (
        {"texts": ["One.", None, "Two."], "images": [None, "cat.jpg", None]},
        document("One.", "\n", CAT, "\n", "Two."),
    ),
    "mmc4": (
        {"text_list": ["One.", "Two."], "image_info": [{"image_name": "cat.jpg", "matched_text_index": 1}]},
        document("One.", "\n", CAT, "\n", "Two."),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_form_reads_as_written_by_hand(name):
    fields, expected = EXAMPLES[name]
    assert read(fields) == expected


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_written_row_reads_back_as_the_same_conversation(name, tmp_path):
    _, conversation = EXAMPLES[name]
    row = json.loads(json.dumps(to_row(conversation, ROOT, id=7)))
    assert row["id"] == 7
    again = read(row)
    if name == "pictures beside messages":
        assert again.images[0].source == "data:image/jpeg;base64,/9j/"
    else:
        assert [(turn.role, joined(turn)) for turn in again.turns] == [
            (turn.role, joined(turn)) for turn in conversation.turns
        ]
    schema("messages").validate(row)


def joined(turn: Turn) -> list[Any]:
    """Parts with neighbouring texts as one: the model sees no seam there."""
    parts: list[Any] = []
    for part in turn.parts:
        if type(part) is Text and parts and type(parts[-1]) is Text:
            parts[-1] = Text(parts[-1].text + part.text)
        else:
            parts.append(part)
    return parts


def schema(name: str) -> jsonschema.Draft202012Validator:
    text = resources.files("cascadevl.data").joinpath("schemas", f"{name}.json").read_text(encoding="utf-8")
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    return jsonschema.Draft202012Validator(json.loads(text))


@pytest.mark.parametrize("name", EXAMPLES)
def test_schemas_accept_what_is_read(name):
    fields, _ = EXAMPLES[name]
    form = find_form(fields)
    assert form
    fields = {key: value for key, value in fields.items() if value is not None}
    schema(form).validate(json.loads(json.dumps(fields, default=lambda _: "bytes")))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("conversations", {"conversations": [{"from": "human", "text": "Hi"}]}),
        ("conversations", {"conversations": [{"from": "bot", "value": "Hi"}]}),
        ("conversations", {"images": "cat.jpg", "conversations": said("Hi", "Ho")}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "picture"}]}]}),
        ("columns", {"question": "Hi"}),
        ("interleaved", {"images": ["cat.jpg"]}),
        ("meta", {"receipts": {"root": "x"}}),
        ("meta", {"receipts": {"annotation": "x.jsonl", "repeat": 2}}),
    ],
)
def test_schemas_refuse_what_is_refused(name, row):
    assert not schema(name).is_valid(row)


def test_every_form_has_a_schema():
    folder = resources.files("cascadevl.data").joinpath("schemas")
    assert {path.name for path in folder.iterdir()} == {f"{name}.json" for name in (*FORMS, "meta")}


@given(st.lists(st.sampled_from(["<image>", "<image>\n", "Image-1: <image>\n", "words ", "\n"]), max_size=6), st.data())
def test_pictures_keep_their_order_wherever_they_are_marked(pieces, data):
    text = "".join(pieces) + "?"
    num = text.count("<image>")
    names = [f"{number}.jpg" for number in range(num)]
    conversation = read({"image": names, "conversations": said(text, "Yes.")})
    assert [image.source for image in conversation.images] == [f"/data/{name}" for name in names]
    assert "<image>" not in conversation.turns[0].text


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["", "<image>", "user", "gpt", "text", "image", "a.mp4"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["from", "value", "role", "content", "type", "text", "image", "tool_calls", "url", "bytes"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)
NAMES = (
    *("conversations", "messages", "texts", "images", "image", "video", "clip", "text", "text_list", "image_info"),
    *("question", "answer", "prompt", "completion", "caption", "tools", "system", "id"),
)


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=4), st.booleans())
def test_whatever_a_row_holds_it_is_read_or_refused_with_a_reason(fields, mending):
    try:
        conversation = read_conversation(fields, find_form(fields) or "columns", ROOT, Row("x.jsonl:1", mending))
    except DataError as error:
        refused = error
    else:
        assert conversation.ends_with_answer
        return
    assert refused.where == "x.jsonl:1"
    assert refused.problem and refused.fix and refused.kind


def test_a_row_of_another_form_is_named_and_can_be_mended():
    fields, expected = EXAMPLES["question and answer"]
    with pytest.raises(DataError, match=r"x.jsonl:1: .*'columns'.*'messages'"):
        read_conversation(fields, "messages", ROOT, Row("x.jsonl:1"))
    row = Row("x.jsonl:1", mending=True)
    assert read_conversation(fields, "messages", ROOT, row) == expected
    assert [problem.kind for problem in row.mended] == ["mixed forms"]


def test_words_that_only_look_like_marks_stay_in_answers_of_others():
    """Angle brackets are no marks by themselves."""
    fields = {"question": "Which tag shows <b>?", "answer": "<picture> does, as <imagery>."}
    assert read(fields) == chat(fields["question"], fields["answer"])
