"""Token ids against transformers' Qwen2 tokenizer, from both forms of its files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cascadevl.preprocessing.tokenizer import TextTokenizer, train_tokenizer
from cascadevl.preprocessing.tokenizer_files import SPECIAL_TOKENS

CORPUS = [
    "The total of the receipt is 12.50, and it's not 1,250. We've paid; they'll see.\n\nThank you!",
    "Der Überblick über die Größe: naïve café, Ελληνικά, русский, עברית, 漢字かな交じり文, 한국어.",
    "    def f(x):\n        return x ** 2  # comment\n\r\n\t\tif x == 10:  pass",
    "😀👍🏽 👩‍👩‍👧 e\u0301 o\u0308 ﬁ Ⅻ ½ … — “quoted” ‘text’ <tag/> a_b-c/d\\e @ 100% $5 #7",
] * 4


class Pair(NamedTuple):
    ours: TextTokenizer
    theirs: Callable[[str], list[int]]
    folder: Path


def _files(slow: bool) -> dict[str, str]:
    files = train_tokenizer(CORPUS, 700)
    if not slow:
        return files
    definition = json.loads(files["tokenizer.json"])
    added = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in definition["added_tokens"]}
    config = {**json.loads(files["tokenizer_config.json"]), "added_tokens_decoder": added, "unk_token": None}
    return {
        "vocab.json": json.dumps(
            {entry: i for entry, i in definition["model"]["vocab"].items() if str(i) not in added}, ensure_ascii=False
        ),
        "merges.txt": "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in definition["model"]["merges"]) + "\n",
        "added_tokens.json": json.dumps({token["content"]: int(i) for i, token in added.items()}),
        "tokenizer_config.json": json.dumps(config),
    }


@pytest.fixture(scope="module", params=[False, True], ids=["tokenizer.json", "vocab and merges"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, text in _files(request.param).items():
        (folder / name).write_text(text, encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__.startswith("Qwen2Tokenizer")
    return Pair(
        TextTokenizer.from_folder(folder), lambda text: theirs(text, add_special_tokens=False)["input_ids"], folder
    )


def test_both_forms_of_the_files_have_the_same_entries(pair: Pair) -> None:
    whole = TextTokenizer(json.loads(_files(False)["tokenizer.json"]), {})
    assert len(pair.ours) == len(whole)
    assert pair.ours.controls == whole.controls
    for token in (*SPECIAL_TOKENS, "<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        assert pair.ours.id(token) == whole.id(token)
    assert pair.ours.encode(CORPUS[1]) == whole.encode(CORPUS[1])


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "\n", "\r\n", " \n \n  x", "a\n\n\nb", "it's WE'LL I'M", "1234567", "1 2  3", "x" * 200),
        *("café", "cafe\u0301", "\u1112\u1161\u11ab", "\u212b", "ﬁ", "👩‍👩‍👧", "\u200b\ufeff\u00a0", "\x00\x7f\u0085"),
        *("中文字符，标点。", "ﾊﾝｶｸ", "مرحبا", "\U000f0000", "\ufffd", "  leading", "trailing  ", "\tindent\t"),
        *("<ref>a cat</ref><box>[[1, 2, 3, 4]]</box>", "x<box>y", " <quad> </quad> ", "<ref><ref>"),
    ],
)
def test_hard_texts_give_the_same_ids(pair: Pair, text: str) -> None:
    assert pair.ours.encode(text) == pair.theirs(text)


@given(
    text=st.text(max_size=60)
    | st.text(alphabet=st.sampled_from(list("aB1 \n\r\t'.é漢字かо́\u0301\u0308😀🏽\u200d<>/|_,sSlL")), max_size=60)
)
def test_any_text_gives_the_same_ids(pair: Pair, text: str) -> None:
    """But for control tokens, which ours keeps plain on purpose."""
    assume(pair.ours.split(text) == [text] * bool(text) and text not in pair.ours.controls)
    assert pair.ours.encode(text) == pair.theirs(text)


def test_control_tokens_in_a_rendered_prompt_have_the_same_ids(pair: Pair) -> None:
    """What transformers makes of the text, ours makes of its pieces."""
    rendered = "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    ids = []
    for piece in pair.ours.split(rendered):
        ids += [pair.ours.controls[piece]] if piece in pair.ours.controls else pair.ours.encode(piece)
    assert ids == pair.theirs(rendered)


def test_answers_decode_to_the_same_text(pair: Pair) -> None:
    theirs = AutoTokenizer.from_pretrained(pair.folder)
    answer = "A <ref>cat</ref> at <box>[[1, 2, 3, 4]]</box>,\n  naïve 漢字 😀."
    ids = [*pair.ours.encode(answer), pair.ours.id("<|im_end|>")]
    assert pair.ours.decode(ids) == answer
    assert theirs.decode(ids).removesuffix("<|im_end|>") == answer
