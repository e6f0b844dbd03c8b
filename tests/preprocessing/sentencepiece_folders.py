"""Small folders with a `tokenizer.model` trained here, set up as the released ones are."""

import functools
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece

from cascadevl.preprocessing.tokenizer_files import SPECIAL_TOKENS

CORPUS = [
    "The total of the receipt is 12.50, and it's not 1,250. We've paid; they'll see. Thank you!",
    "Der Überblick über die Größe: naïve café, русский, 漢字かな交じり文。",
    "def f(x): return x ** 2  # comment,    if x == 10:  pass",
    "the cat sat on the mat and the dog sat on a cat, assistant user system, a a a",
] * 8
UNUSED = [f"[UNUSED_TOKEN_{n}]" for n in range(4)]


@functools.cache
def model(dummy_prefix: bool) -> bytes:
    """BPE with byte fallback over text as it is: the settings of Llama, Yi and InternLM2."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=written,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=dummy_prefix,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.98,
        user_defined_symbols=UNUSED,
        minloglevel=2,
    )
    return written.getvalue()


def pieces(dummy_prefix: bool) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model(dummy_prefix))


def entry(content: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {"content": content, **plain, **flags}


def internlm2(folder: Path) -> Path:
    """Chat tokens over unused pieces of the model, InternVL's nine behind it; no dummy prefix."""
    size, first = pieces(False).get_piece_size(), pieces(False).piece_to_id(UNUSED[2])
    added = {first: "<|im_end|>", first + 1: "<|im_start|>", 0: "<unk>", 1: "<s>", 2: "</s>"}
    added |= {size + n: token for n, token in enumerate(SPECIAL_TOKENS)}
    return write(folder, False, {i: entry(token) for i, token in added.items()}, "InternLM2Tokenizer")


def yi(folder: Path) -> Path:
    """A Llama tokenizer with `legacy`: a ▁ behind every added token."""
    size = pieces(True).get_piece_size()
    added = {size + n: entry(token) for n, token in enumerate(("<|im_start|>", "<|im_end|>", *SPECIAL_TOKENS))}
    return write(folder, True, added, "LlamaTokenizer", legacy=True, add_bos_token=False)


def phi3(folder: Path) -> Path:
    """A Llama tokenizer without `legacy`, whose role tokens swallow the white space to their right."""
    size = pieces(True).get_piece_size()
    roles = [entry(token, rstrip=True) for token in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")]
    added = {2: entry("</s>", rstrip=True, special=False)}
    added |= {size + n: token for n, token in enumerate((*roles, *map(entry, SPECIAL_TOKENS)))}
    return write(folder, True, added, "LlamaTokenizer", legacy=False)


def write(folder: Path, dummy_prefix: bool, added: dict[int, dict[str, Any]], name: str, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model(dummy_prefix))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": name}
    decoder = {str(i): token for i, token in added.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, **config, "added_tokens_decoder": decoder}))
    return folder


FOLDERS = {"InternLM2": internlm2, "Yi": yi, "Phi-3": phi3}
