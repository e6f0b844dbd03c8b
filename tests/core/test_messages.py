"""OpenAI-style messages come in here; what is wrong is refused by number and name."""

from typing import Any

import pytest

from cascadevl.core.errors import MediaError, MessageError
from cascadevl.core.messages import Conversation, Image, Text, Turn, Video


def test_dictionaries_become_turns_and_parts_in_order() -> None:
    conversation = Conversation.parse(
        [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": "a.png", "max_tiles": 3},
                    {"type": "text", "text": "What?"},
                    {"type": "image_url", "image_url": {"url": "b.png", "detail": "low"}},
                    {"type": "image_url", "image_url": "c.png"},
                    {"type": "image_url", "image_url": {"url": "d.png", "detail": None}},
                ],
            },
            {"role": "assistant", "content": "A cat."},
        ]
    )
    assert conversation == Conversation(
        (
            Turn("system", (Text("Be brief."),)),
            Turn("user", (Image("a.png", 3), Text("What?"), Image("b.png", 6), Image("c.png"), Image("d.png"))),
            Turn("assistant", (Text("A cat."),)),
        )
    )
    assert conversation.images == (Image("a.png", 3), Image("b.png", 6), Image("c.png"), Image("d.png"))
    assert conversation.ends_with_answer


def test_a_text_alone_is_a_question() -> None:
    assert Conversation.parse("What?") == Conversation.ask("What?") == Conversation((Turn("user", (Text("What?"),)),))


def test_videos_come_as_parts_with_their_clips() -> None:
    conversation = Conversation.parse(
        [
            {
                "role": "user",
                "content": [
                    {"type": "video", "video": "a.mp4", "start": 1, "end": 2.5, "num_frames": 4},
                    {"type": "image", "image": "b.png"},
                    {"type": "video", "video": ["1.png", "2.png"], "start": None},
                    {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA"}, "num_frames": 2},
                    {"type": "video_url", "video_url": "c.webm"},
                ],
            }
        ]
    )
    videos = (
        Video("a.mp4", 1, 2.5, 4),
        Video(["1.png", "2.png"]),
        Video("data:video/mp4;base64,AA", num_frames=2),
        Video("c.webm"),
    )
    assert conversation.media == (videos[0], Image("b.png"), *videos[1:])
    assert conversation.images == (Image("b.png"),)


@pytest.mark.parametrize(
    "clip",
    [
        *({"start_s": s} for s in (-0.1, float("nan"), float("inf"), True, "1")),
        *({"end_s": 0}, {"start_s": 2, "end_s": 2}, {"start_s": 2, "end_s": 1}),
        *({"num_frames": n} for n in (0, -3, 1.5, True)),
    ],
)
def test_an_impossible_clip_is_refused_where_it_is_made(clip: dict[str, Any]) -> None:
    with pytest.raises(MediaError, match=r"clip|num_frames"):
        Video("a.mp4", **clip)


BAD: list[tuple[Any, str]] = [
    ([], "empty"),
    ({"role": "user", "content": "x"}, "Expected a list of messages, got dict"),
    (3, "Expected a list of messages, got int"),
    ([3], "Message 0: expected a dictionary, got int"),
    ([{"role": "usr", "content": "x"}], "Unknown role 'usr'.*system, user, assistant.*Did you mean 'user'"),
    ([{"role": None, "content": "x"}], "Unknown role None"),
    ([{"role": "user"}], "Message 0: expected the fields 'role' and 'content', got"),
    ([{"role": "user", "content": "x", "contents": 1}], "unknown field 'contents'.*Did you mean 'content'"),
    ([{"role": "user", "content": None}], "Message 0: 'content' must be a text or a list of parts, got NoneType"),
    ([{"role": "user", "content": {"type": "text"}}], "must be a text or a list of parts, got dict"),
    ([{"role": "user", "content": ["x"]}], "a part must be a dictionary with a 'type'"),
    ([{"role": "user", "content": [{"text": "x"}]}], "a part must be a dictionary with a 'type'"),
    (
        [{"role": "user", "content": [{"type": "img", "image": 1}]}],
        "unknown part type 'img'.*text, image, image_url, video.*Did you mean 'image'",
    ),
    ([{"role": "user", "content": [{"type": "image"}]}], "a part of type 'image' needs the field 'image'"),
    ([{"role": "user", "content": [{"type": ["image"]}]}], "unknown part type"),
    ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "'text' must be a string, got int"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "needs the field 'url'"),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "size": 3}}]}],
        "'image_url' has the fields 'url' and 'detail', got 'size'",
    ),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "huge"}}]}],
        "detail 'huge' is not one of auto, low, medium, high",
    ),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": ["low"]}}]}],
        "detail .* is not one of",
    ),
    *(
        ([{"role": "user", "content": [{"type": "image", "image": "a", "max_tiles": n}]}], "'max_tiles' must be a pos")
        for n in (0, -1, 1.5, "3", True)
    ),
    (
        [{"role": "user", "content": [{"type": "image", "image": "a", "max_tile": 3}]}],
        "a part of type 'image' has no field 'max_tile'. Known: image, max_tiles. Did you mean 'max_tiles'",
    ),
    ([{"role": "user", "content": [{"type": "text", "text": "a", "image": "b"}]}], "has no field 'image'"),
    ([{"role": "user", "content": [{"type": "video", "url": "a"}]}], "needs the field 'video'"),
    (
        [{"role": "user", "content": [{"type": "video", "video": "a", "frames": 3}]}],
        "has no field 'frames'. Known: video, start, end, num_frames",
    ),
    ([{"role": "user", "content": [{"type": "video", "video": "a", "start": "1"}]}], "'start' must be a number of sec"),
    ([{"role": "user", "content": [{"type": "video", "video": "a", "num_frames": 2.0}]}], "'num_frames' must be a who"),
    ([{"role": "user", "content": [{"type": "video_url", "video_url": {}}]}], "needs the field 'url' and no other"),
    (
        [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "a", "detail": "low"}}]}],
        "needs the field 'url' and no other",
    ),
    ([{"role": "user", "content": [{"type": "video_url", "video_url": {"url": ["a"]}}]}], "must be a string, got list"),
    ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "Message 1 has the role 'system'"),
    ([{"role": "user", "content": " \n"}], "Message 0 is empty: ask a question or attach a picture"),
    ([{"role": "user", "content": []}], "Message 0 is empty"),
]


@pytest.mark.parametrize(("messages", "message"), BAD)
def test_what_cannot_be_meant_is_refused_with_what_was_expected(messages: Any, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        Conversation.parse(messages)


@pytest.mark.parametrize("question", ["", "  \n", None, 3])
def test_an_empty_question_is_refused(question: Any) -> None:
    with pytest.raises(MessageError, match="question is empty"):
        Conversation.ask(question, ["a.png"])
