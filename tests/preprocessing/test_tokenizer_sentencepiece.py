"""tokenizer.model as the slow tokenizers read it: spaces, bytes, added tokens over pieces."""

import builtins
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.checkpoints.load import load_processor
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.config import evolve
from cascadevl.core.errors import CheckpointError, MissingExtra
from cascadevl.preprocessing.tokenizer import TextTokenizer
from cascadevl.preprocessing.tokenizer_files import SPECIAL_TOKENS, SPOKEN, added_bos
from tests.preprocessing.sentencepiece_folders import FOLDERS, UNUSED, internlm2, phi3, pieces, yi

NASTY = st.lists(
    st.sampled_from(
        [*SPECIAL_TOKENS, *UNUSED, "<s>", "</s>", "<unk>", "<0x0A>", "▁", " ", "  ", "\n", "cat", "漢", "😀"]
    )
    | st.text(max_size=4),
    max_size=10,
).map("".join)


@pytest.fixture(scope="module", params=FOLDERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer.from_folder(FOLDERS[request.param](tmp_path_factory.mktemp("folder")))


def _written(tokenizer: TextTokenizer, folder: Path, text: str, **where: bool) -> list[str]:
    model = pieces(folder.name != "internlm2")
    return [model.id_to_piece(i) if i < model.get_piece_size() else "+" for i in tokenizer.encode(text, **where)]


def test_internlm2_puts_no_space_before_words(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_folder(internlm2(tmp_path / "internlm2"))
    assert _written(tokenizer, tmp_path / "internlm2", "cat")[0][0] == "c"
    assert _written(tokenizer, tmp_path / "internlm2", " a cat") == ["▁a", "▁cat"]
    assert _written(tokenizer, tmp_path / "internlm2", "a<box> a") == ["a", "+", "▁a"]


def test_yi_puts_one_behind_every_added_token_and_none_inside_a_text(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_folder(yi(tmp_path))
    assert _written(tokenizer, tmp_path, "a cat") == ["▁a", "▁cat"]
    assert _written(tokenizer, tmp_path, "a cat", inside=True) == ["a", "▁cat"]
    assert _written(tokenizer, tmp_path, " a<box>a") == ["▁", "▁a", "+", "▁a"]
    assert _written(tokenizer, tmp_path, "a<box>a", inside=True) == ["a", "+", "▁a"]


def test_phi3_puts_one_only_before_the_whole_prompt_and_its_roles_swallow_the_newline(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_folder(phi3(tmp_path))
    assert _written(tokenizer, tmp_path, "a cat") == ["a", "▁cat"]
    assert _written(tokenizer, tmp_path, " a cat") == ["▁a", "▁cat"]
    prompt = "<|system|>\nBe kind.<|end|><|user|>\n the cat<|end|><|assistant|>\n"
    assert tokenizer.split(prompt) == [
        *("<|system|>", "Be kind.", "<|end|>", "<|user|>", "the cat", "<|end|>", "<|assistant|>")
    ]
    assert tokenizer.opening(prompt) == [pieces(True).piece_to_id("▁")]
    assert tokenizer.opening("<s>" + prompt) == []


def test_chat_tokens_lie_over_pieces_of_internlm2_and_text_does_not_reach_them(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_folder(internlm2(tmp_path / "internlm2"))
    start = pieces(False).piece_to_id(UNUSED[3])
    assert tokenizer.id("<|im_start|>") == start and tokenizer.tokens([start]) == ["<|im_start|>"]
    assert pieces(False).encode(UNUSED[3]) == [start], "SentencePiece alone would give the control token"
    spelled = tokenizer.encode(f"a {UNUSED[3]} b")
    assert start not in spelled and tokenizer.decode(spelled) == f"a {UNUSED[3]} b"
    assert tokenizer.encode(UNUSED[0]) == [pieces(False).piece_to_id(UNUSED[0])]
    with pytest.raises(CheckpointError, match="no entry"):
        tokenizer.id(UNUSED[3])


def test_controls_are_those_of_the_model_and_those_added_but_not_what_is_spoken(tokenizer: TextTokenizer) -> None:
    assert {"<s>", "</s>", "<unk>", "<img>", "</img>", "<IMG_CONTEXT>"} <= tokenizer.controls.keys()
    assert not SPOKEN & tokenizer.controls.keys()
    assert all(tokenizer.id(token) == i for token, i in tokenizer.controls.items())
    assert len(tokenizer) == max(map(tokenizer.id, SPECIAL_TOKENS)) + 1


@given(text=NASTY)
def test_no_text_encodes_to_a_control_id_and_every_text_comes_back(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.controls.values())
    shown = text.replace("▁", " ")
    assert tokenizer.decode(ids) == (shown.removeprefix(" ") if "<|user|>" in tokenizer.controls else shown)
    assert not set(tokenizer.encode(text, inside=True)) & set(tokenizer.controls.values())


@given(text=NASTY)
def test_a_disarmed_text_is_not_cut(tokenizer: TextTokenizer, text: str) -> None:
    disarmed = tokenizer.disarm(text, "\U000f1234")
    assert not set(tokenizer.split(disarmed)) & tokenizer.controls.keys()
    assert disarmed.replace("\U000f1234", "") == text


@given(data=st.data())
def test_a_stream_of_any_ids_makes_their_text(tokenizer: TextTokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 3) | st.integers(3, 258 + len(UNUSED)), max_size=30))
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


@given(data=st.data())
def test_pieces_decode_as_sentencepiece_decodes_them(tmp_path_factory: Any, data: st.DataObject) -> None:
    for make, dummy_prefix in ((internlm2, False), (yi, True)):
        model = pieces(dummy_prefix)
        tokenizer = TextTokenizer.from_folder(make(tmp_path_factory.getbasetemp() / make.__name__))
        plain = set(range(3, model.get_piece_size())) - {model.piece_to_id(piece) for piece in UNUSED}
        ids = data.draw(st.lists(st.sampled_from(sorted(plain))))
        assert tokenizer.decode(ids) == model.decode(ids)


def test_a_character_of_several_bytes_is_shown_when_it_is_whole(tokenizer: TextTokenizer) -> None:
    stream = tokenizer.stream()
    shown = [stream.push(i) for i in tokenizer.encode("😀")]
    assert shown[-1] == "😀" and not "".join(shown[:-1])


def test_older_files_tell_ids_alone(tmp_path: Path) -> None:
    yi(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    added = {token["content"]: int(i) for i, token in config.pop("added_tokens_decoder").items()}
    expected = TextTokenizer.from_folder(yi(tmp_path / "new")).controls
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    assert TextTokenizer.from_folder(tmp_path).controls == expected


def test_the_files_come_back_as_they_were(tmp_path: Path) -> None:
    files = TextTokenizer.from_folder(yi(tmp_path)).files
    assert {name: (tmp_path / name).read_bytes() for name in files} == {
        name: data if isinstance(data, bytes) else data.encode() for name, data in files.items()
    }
    assert files.keys() == {"tokenizer.model", "tokenizer_config.json"}


def test_a_checkpoint_with_a_tokenizer_model_is_written_and_read_again(tmp_path: Path) -> None:
    """And the prompts of InternLM2 begin with its BOS."""
    parts = tiny_parts("qwen2")
    tokenizer = TextTokenizer.from_folder(internlm2(tmp_path / "tokenizer"))
    spec = evolve(parts.spec, template="internlm2-chat")
    save_parts(dataclasses.replace(parts, tokenizer=tokenizer, spec=spec), tmp_path / "model", layout="chat")
    assert (tmp_path / "model" / "tokenizer.model").read_bytes() == tokenizer.files["tokenizer.model"]
    (tmp_path / "model" / "preprocessing_spec.json").unlink()
    processor = load_processor(tmp_path / "model")
    assert processor.spec.bos == "<s>"
    ids = processor([{"role": "user", "content": "the cat"}]).token_ids.tolist()
    assert processor.tokenizer.tokens(ids[:2]) == ["<s>", "<|im_start|>"]
    assert processor.tokenizer.decode(ids).endswith("user\nthe catassistant\n")


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({900: "<img>"}, r"has 420 pieces, but the added tokens behind them have the ids \[900\]"),
        ({420: "<s>"}, "'<s>' is piece 1 of tokenizer.model, but the added token 420"),
    ],
)
def test_added_tokens_of_another_model_are_refused(tmp_path: Path, added: dict[int, str], message: str) -> None:
    yi(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "added_tokens.json").write_text(json.dumps({token: i for i, token in added.items()}))
    with pytest.raises(CheckpointError, match=message):
        TextTokenizer.from_folder(tmp_path)


def test_a_broken_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=f"tokenizer files in {tmp_path} cannot be read"):
        TextTokenizer.from_folder(tmp_path)


def test_without_sentencepiece_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "sentencepiece":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    yi(tmp_path)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install 'cascadevl\[sentencepiece\]'"):
        TextTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_config_is_named(tmp_path: Path, text: str) -> None:
    yi(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text)
    for read in (TextTokenizer.from_folder, added_bos):
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json cannot be read"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"tokenizer_class": "InternLM2Tokenizer", "bos_token": "<s>"}, "<s>"),
        ({"tokenizer_class": "LlamaTokenizer"}, "<s>"),
        ({"bos_token": {"content": "<|startoftext|>"}}, "<|startoftext|>"),
        ({"add_bos_token": False, "bos_token": "<s>"}, None),
        ({"add_bos_token": True, "bos_token": None}, None),
    ],
)
def test_a_tokenizer_model_has_a_bos_unless_told_otherwise(tmp_path: Path, config: Any, expected: Any) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert added_bos(tmp_path) == expected
