"""Plain text can not become control tokens, and every text comes back as it was."""

import json
import threading
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.core.errors import CheckpointError
from cascadevl.preprocessing.tokenizer import TextTokenizer, train_tokenizer
from cascadevl.preprocessing.tokenizer_files import SPECIAL_TOKENS, SPOKEN

FILES = train_tokenizer(["the cat sat on the mat", "<box>[[1, 2, 3, 4]]</box>", "über 漢字"], 280)
TOKENIZER = TextTokenizer(json.loads(FILES["tokenizer.json"]), FILES)
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")

SHARDS = st.sampled_from(
    [*CONTROLS, *SPOKEN, *"<>|/ia", "<|im", "_start|>", "IMG_", "CONTEXT", "\U000f0000", "漢", "\n"]
)
NASTY = st.lists(SHARDS, max_size=12).map("".join)


def test_the_special_tokens_follow_the_vocabulary_in_their_official_order() -> None:
    assert [TOKENIZER.id(token) for token in (*CONTROLS[:3], *SPECIAL_TOKENS)] == list(range(280, 292))
    assert len(TOKENIZER) == 292
    assert set(TOKENIZER.controls) == set(CONTROLS)


@pytest.mark.parametrize("token", sorted(SPOKEN))
def test_spoken_tokens_become_their_one_id(token: str) -> None:
    assert TOKENIZER.encode(token) == [TOKENIZER.id(token)]
    assert TOKENIZER.encode(f"a{token}b")[1:-1] == [TOKENIZER.id(token)]
    assert TOKENIZER.decode(TOKENIZER.encode(token)) == token


@given(NASTY | st.text(max_size=40))
def test_no_text_encodes_to_a_control_id_and_every_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert not set(ids) & set(TOKENIZER.controls.values())
    assert TOKENIZER.decode(ids) == normalize("NFC", text)


@given(NASTY)
def test_a_disarmed_text_is_not_cut_and_is_the_same_without_its_marks(text: str) -> None:
    mark = "\U000f1234"
    disarmed = TOKENIZER.disarm(text, mark)
    assert not set(TOKENIZER.split(disarmed)) & set(CONTROLS)
    assert disarmed.replace(mark, "") == text


def test_other_threads_run_while_a_long_text_is_encoded() -> None:
    ended, ticks = threading.Event(), 0

    def encode() -> None:
        TOKENIZER.encode("1234567890 " * 60_000)
        ended.set()

    thread = threading.Thread(target=encode)
    thread.start()
    while not ended.wait(0.001):
        ticks += 1
    thread.join()
    assert ticks > 30


def test_split_cuts_at_control_tokens_and_keeps_everything() -> None:
    rendered = "<|im_start|>user\n<img><IMG_CONTEXT></img>\n<ref>x</ref><|im_end|>"
    pieces = TOKENIZER.split(rendered)
    assert pieces == [
        *("<|im_start|>", "user\n", "<img>", "<IMG_CONTEXT>", "</img>", "\n<ref>x</ref>", "<|im_end|>"),
    ]
    assert TOKENIZER.split("") == []


def test_decoding_leaves_control_tokens_out_and_boxes_in() -> None:
    ids = [*TOKENIZER.encode("a <box>[[1, 2, 3, 4]]</box>"), TOKENIZER.id("<img>"), TOKENIZER.id("<|im_end|>")]
    assert TOKENIZER.decode(ids) == "a <box>[[1, 2, 3, 4]]</box>"
    assert TOKENIZER.tokens(ids)[-2:] == ["<img>", "<|im_end|>"]


@given(st.text(max_size=30))
def test_streamed_pieces_make_the_text(text: str) -> None:
    stream, pieces = TOKENIZER.stream(), []
    for i in TOKENIZER.encode(text):
        pieces.append(stream.push(i))
        assert "\ufffd" not in pieces[-1] or "\ufffd" in text, "half a character is not shown"
    assert "".join(pieces) == normalize("NFC", text)


@given(st.lists(st.integers(0, len(TOKENIZER) + 3), max_size=40))
def test_a_stream_of_any_ids_makes_their_text(ids: list[int]) -> None:
    """Bytes of no character too: what never became whole is shown at the end, as `decode` shows it.

    Embeddings may be more than entries; the ids behind them have no text.
    """
    stream = TOKENIZER.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == TOKENIZER.decode(ids)


def test_the_files_come_back_as_they_were(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert TextTokenizer.from_folder(tmp_path).files == FILES


def test_a_folder_without_a_tokenizer_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(
        CheckpointError, match=r"no tokenizer: expected tokenizer.json, or vocab.json.*\['merges.txt'\]"
    ):
        TextTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"added_tokens": []}'])
def test_a_broken_tokenizer_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        TextTokenizer.from_folder(tmp_path)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        TextTokenizer.from_folder(tmp_path)


def test_ids_that_do_not_follow_the_vocabulary_are_refused() -> None:
    definition = json.loads(FILES["tokenizer.json"])
    for token in definition["added_tokens"]:
        token["id"] += 5
    with pytest.raises(CheckpointError, match=r"'<\|endoftext\|>' the id 285, but its vocabulary leads to 280"):
        TextTokenizer(definition, {})


def test_added_tokens_that_do_not_fit_the_vocabulary_are_refused(tmp_path: Path) -> None:
    vocabulary = json.loads(FILES["tokenizer.json"])["model"]["vocab"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 999}))
    with pytest.raises(CheckpointError, match=r"'<\|im_end\|>' should have the id 999.*do not belong together"):
        TextTokenizer.from_folder(tmp_path)


def test_a_tokenizer_without_the_image_tokens_is_refused_when_they_are_asked_for() -> None:
    with pytest.raises(CheckpointError, match="no entry '<video>'; an InternVL tokenizer needs it"):
        TOKENIZER.id("<video>")
