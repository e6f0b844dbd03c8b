"""Tokenizers of the other families against transformers' classes: Llama, InternLM2, Phi-3, Llama-3, GPT-OSS.

Each is trained here in the configuration of the released one. Texts are compared as they stand
behind a control token, which is where a prompt has them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from cascadevl.preprocessing.tokenizer import TextTokenizer
from cascadevl.preprocessing.tokenizer_files import SPECIAL_TOKENS, added_bos
from tests.preprocessing.sentencepiece_folders import CORPUS, internlm2, phi3, pieces, yi

LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
O200K_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HARMONY = ("<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>")


class Pair(NamedTuple):
    ours: TextTokenizer
    theirs: Any
    before: str
    """The control token that texts stand behind."""

    shown: Callable[[str], str] = lambda text: text.replace("▁", " ")
    """How a text comes back."""

    def ids(self, text: str) -> list[int]:
        ids = self.theirs(self.before + text, add_special_tokens=False)["input_ids"]
        return ids[ids.index(self.ours.id(self.before)) + 1 :]


def _internlm2(folder: Path) -> Pair:
    return _slow(internlm2(folder), "<|im_start|>")


def _yi(folder: Path) -> Pair:
    return _slow(yi(folder), "<|im_start|>")


def _slow(folder: Path, before: str) -> Pair:
    """What InternLM2Tokenizer and the old LlamaTokenizer have in common is this class of transformers."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {int(i): AddedToken(**token) for i, token in config["added_tokens_decoder"].items()}
    theirs = SentencePieceBackend(
        vocab_file=str(folder / "tokenizer.model"),
        legacy=True,
        added_tokens_decoder=added,
        **{name: config[name] for name in ("bos_token", "eos_token", "unk_token")},
    )
    return Pair(TextTokenizer.from_folder(folder), theirs, before)


def _llama() -> LlamaTokenizer:
    """Today's LlamaTokenizer is the one without `legacy`, made of pieces and the merges they imply."""
    model = pieces(True)
    vocabulary = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    scores = {piece: model.get_score(i) for piece, i in vocabulary.items()}
    return LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary, scores))


def _phi3(folder: Path) -> Pair:
    theirs: Any = _llama()
    config = json.loads((phi3(folder) / "tokenizer_config.json").read_text())
    theirs.add_tokens([AddedToken(**token) for token in config["added_tokens_decoder"].values()])
    return Pair(TextTokenizer.from_folder(folder), theirs, "<img>", _without_first_space)


def _without_first_space(text: str) -> str:
    """Without `legacy` texts have no ▁ in front; answers are shown without one all the same, as transformers does."""
    return text.replace("▁", " ").removeprefix(" ")


def _phi3_json(folder: Path) -> Pair:
    theirs = _phi3(folder / "slow").theirs
    return Pair(TextTokenizer(json.loads(theirs.backend_tokenizer.to_str()), {}), theirs, "<img>", _without_first_space)


def _legacy_json(folder: Path) -> Pair:
    """As transformers wrote Llama's tokenizer.json for years: ▁ before every stretch, by the normalizer."""
    backend = _llama().backend_tokenizer
    backend.pre_tokenizer = None  # type: ignore[assignment]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _json(backend, "<img>", lambda text: text.replace("▁", " "))


def _byte_level(words: str, special: tuple[str, ...], bos: str | None, **model: Any) -> Tokenizer:
    backend = Tokenizer(models.BPE(**model))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(token, special=True) for token in (*special, *SPECIAL_TOKENS)])
    post: list[Any] = [processors.ByteLevel(trim_offsets=False)]
    if bos:
        template = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos) or 0)]
        )
        post.append(template)
    backend.post_processor = processors.Sequence(post)
    return backend


def _llama_3(folder: Path) -> Pair:
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>")
    return _json(_byte_level(LLAMA_3_WORDS, special, special[0], ignore_merges=True), "<|im_start|>")


def _gpt_oss(folder: Path) -> Pair:
    return _json(_byte_level(O200K_WORDS, HARMONY, None), "<|message|>")


def _json(backend: Tokenizer, before: str, shown: Callable[[str], str] = str) -> Pair:
    ours, theirs = TextTokenizer(json.loads(backend.to_str()), {}), PreTrainedTokenizerFast(tokenizer_object=backend)
    return Pair(ours, theirs, before, shown)


PAIRS: dict[str, Callable[[Path], Pair]] = {
    "InternLM2": _internlm2,
    "Yi": _yi,
    "Phi-3": _phi3,
    "Phi-3, tokenizer.json": _phi3_json,
    "Llama-2, tokenizer.json": _legacy_json,
    "Llama-3": _llama_3,
    "GPT-OSS": _gpt_oss,
}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return PAIRS[request.param](tmp_path_factory.mktemp("tokenizer"))


LETTERS = st.sampled_from(
    [*"abcsThe 12'.,é漢😀\u0301\u200d<>/|_▁\n\r\t", "  ", " the", "cat", "<ref>", "</box>", "s>", "<0x0A>"]
)
TEXTS = st.lists(LETTERS, max_size=30).map("".join) | st.text(max_size=40)


@given(text=TEXTS)
@example(text="")
@example(text=" ")
@example(text="\n  the cat<ref> a cat </ref><box>[[1, 2]]</box>  ")
def test_any_text_has_the_ids_of_transformers(pair: Pair, text: str) -> None:
    """But for control tokens, which ours keeps plain on purpose, and names of unused pieces under them."""
    assume(pair.ours.split(text) == [text] * bool(text) and text not in pair.ours.controls and "UNUSED" not in text)
    assert pair.ours.encode(text) == pair.ids(text)


@given(text=TEXTS)
def test_any_text_comes_back_and_makes_no_control_token(pair: Pair, text: str) -> None:
    for inside in (False, True):
        ids = pair.ours.encode(text, inside=inside)
        assert not set(ids) & set(pair.ours.controls.values())
    assert pair.ours.decode(pair.ours.encode(text)) == pair.shown(text)


@given(data=st.data())
def test_a_stream_of_any_ids_makes_their_text(pair: Pair, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(pair.ours) + 2), max_size=25))
    stream = pair.ours.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == pair.ours.decode(ids)


@pytest.mark.parametrize("name", ["Phi-3", "Phi-3, tokenizer.json"])
def test_a_whole_prompt_of_phi3_has_the_ids_of_transformers(name: str, tmp_path: Path) -> None:
    ours, theirs, *_ = PAIRS[name](tmp_path)
    prompt = "<|system|>\nBe kind.<|end|><|user|>\n<img><IMG_CONTEXT></img>\nthe  cat<|end|><|assistant|>\n"
    ids: list[int] = []
    for piece in ours.split(prompt):
        ids += [ours.controls[piece]] if piece in ours.controls else ours.encode(piece)
    assert ids == theirs(prompt, add_special_tokens=False)["input_ids"]


def test_an_answer_of_gpt_oss_is_shown_without_headers(tmp_path: Path) -> None:
    ours, theirs, *_ = _gpt_oss(tmp_path)
    said = (
        "<|channel|>analysis<|message|>Two 漢 ears.<|end|><|start|>assistant<|channel|>final<|message|>A cat.<|return|>"
    )
    ids = theirs(said, add_special_tokens=False)["input_ids"]
    stream = ours.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids)
    assert ours.decode(ids) == "<think>Two 漢 ears.</think>\nA cat."
    final = theirs("<|channel|>final<|message|>A cat.<|return|>", add_special_tokens=False)["input_ids"]
    assert ours.decode(final) == "A cat."


@pytest.mark.parametrize("name", ["Llama-2, tokenizer.json", "Llama-3", "GPT-OSS"])
@pytest.mark.parametrize("config", [{}, {"add_bos_token": False}, {"add_bos_token": True}], ids=str)
def test_the_bos_is_put_where_transformers_puts_it(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    pair = PAIRS[name](tmp_path)
    pair.theirs.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    bare, added = (theirs(pair.before, add_special_tokens=s)["input_ids"] for s in (False, True))
    bos = added_bos(tmp_path)
    assert added == ([pair.ours.id(bos)] if bos else []) + bare
    assert (bos is None) == (name == "GPT-OSS")
