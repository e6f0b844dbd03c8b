"""The tokenizer inside a GGUF file becomes the files that official folders have.

`gpt2` is byte-level BPE and becomes a tokenizer.json; what the file says of cutting text into words is a
mere name, so that only names whose rules are known are read. `llama` is SentencePiece's BPE and becomes a
tokenizer.model again, whose pieces, scores and types it has as they were.
"""

import json
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cascadevl.core.errors import CheckpointError, UserError
from cascadevl.preprocessing.tokenizer import TextTokenizer

TYPES = range(1, 7)
CONTROL, USER_DEFINED, BYTE = 3, 4, 6
"""Of `tokenizer.ggml.token_type`, which counts as SentencePiece does."""


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(digits: str) -> list[dict[str, Any]]:
    """Words of Llama 3 and Qwen, which differ in how many digits stay together."""
    words = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return [{"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}, _byte_level(False)]


_DIGITS = {"type": "Digits", "individual_digits": True}

WORDS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_byte_level(True)],
    "llama-bpe": _split(r"\p{N}{1,3}"),
    "qwen2": _split(r"\p{N}"),
    "smollm": [_DIGITS, _byte_level(True)],
    "starcoder": [_DIGITS, _byte_level(True)],
}
"""`tokenizer.ggml.pre` -> how text is cut into words (llama.cpp, `llama-vocab.cpp`)."""


def read_tokenizer(path: Path, metadata: Mapping[str, Any]) -> TextTokenizer:
    """Raises CheckpointError for kinds that are unknown, and MissingExtra where SentencePiece is needed and absent."""
    makers = {"gpt2": _bpe, "llama": _sentencepiece}
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in makers:
        raise CheckpointError(f"{path} has a tokenizer of the kind {kind!r}. Supported: {', '.join(makers)}.")
    try:
        return makers[kind](path, metadata)
    except UserError:
        raise
    except Exception as error:  # the libraries raise bare Exceptions
        raise CheckpointError(f"The tokenizer in {path} cannot be read: {error}") from error


def added_bos(metadata: Mapping[str, Any]) -> str | None:
    """The token in front of every prompt. Files that do not say leave it to the kind, as llama.cpp does."""
    usual = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    wanted = metadata.get("tokenizer.ggml.add_bos_token", usual)
    return _named(metadata).get("bos_token") if wanted else None


def stop_ids(metadata: Mapping[str, Any], tokenizer: TextTokenizer) -> tuple[int, ...]:
    """What the file says, and the ends of turns that its tokenizer has."""
    said = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    ends = [tokenizer.controls.get(end) for end in ("<|im_end|>", "<|eot_id|>", "<|end|>")]
    return tuple(dict.fromkeys(i for i in (*said, *ends) if isinstance(i, int)))


def _tokens(path: Path, metadata: Mapping[str, Any]) -> tuple[list[str], Sequence[int]]:
    """Tokens and their types, as many of the one as of the other."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens or []))
    if not isinstance(tokens, list) or len(tokens) != len(types):
        raise CheckpointError(f"{path} does not have as many tokens as types of tokens; both were expected.")
    if not set(types) <= set(TYPES):
        raise CheckpointError(f"{path} has tokens of the types {sorted(set(types) - set(TYPES))[:3]}; 1 to 6 exist.")
    (most, times), *_ = Counter(tokens).most_common(1) or [("", 1)]
    if times > 1:
        raise CheckpointError(f"{path} has the token {most!r} {times} times.")
    return tokens, types


def _named(metadata: Mapping[str, Any]) -> dict[str, str]:
    """What the file calls `bos_token` and `eos_token`."""
    tokens, names = metadata.get("tokenizer.ggml.tokens") or [], {}
    for name in ("bos", "eos"):
        i = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(i, int) and 0 <= i < len(tokens):
            names[f"{name}_token"] = tokens[i]
    return names


def _config(metadata: Mapping[str, Any], name: str, **more: Any) -> str:
    settings = {"tokenizer_class": name, "add_bos_token": added_bos(metadata) is not None, **_named(metadata), **more}
    return json.dumps(settings, indent=2, ensure_ascii=False)


def _bpe(path: Path, metadata: Mapping[str, Any]) -> TextTokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in WORDS:
        raise CheckpointError(f"{path} cuts text into words by the rules {pre!r}. Supported: {', '.join(WORDS)}.")
    tokens, types = _tokens(path, metadata)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **plain, "special": kind == CONTROL}
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": WORDS[pre]},
        "post_processor": None,
        "decoder": _byte_level(True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": list(metadata.get("tokenizer.ggml.merges", [])),
        },
    }
    text = json.dumps(definition, ensure_ascii=False)
    files = {"tokenizer.json": text, "tokenizer_config.json": _config(metadata, "PreTrainedTokenizerFast")}
    return TextTokenizer(definition, files)


def _sentencepiece(path: Path, metadata: Mapping[str, Any]) -> TextTokenizer:
    tokens, types = _tokens(path, metadata)
    scores = metadata.get("tokenizer.ggml.scores", ())
    if len(scores) != len(tokens):
        raise CheckpointError(f"{path} has {len(scores)} scores for {len(tokens)} tokens.")
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(b"".join(_model_file(tokens, types, scores, prefix)))
        config = _config(metadata, "LlamaTokenizer", legacy=True)
        (Path(folder) / "tokenizer_config.json").write_text(config, encoding="utf-8")
        return TextTokenizer.from_folder(Path(folder))


def _model_file(tokens: list[str], types: Sequence[int], scores: Sequence[float], prefix: bool) -> Iterator[bytes]:
    """A ModelProto (google/sentencepiece, `sentencepiece_model.proto`), field by field."""
    for token, kind, score in zip(tokens, types, scores, strict=True):
        text = token.encode("utf-8")
        yield _message(1, _message(1, text) + b"\x15" + struct.pack("<f", score) + _integer(3, kind))
    yield _message(2, _integer(3, 2) + _integer(35, BYTE in types))  # BPE; bytes for what no piece spells
    yield _message(3, _message(1, b"identity") + _integer(3, prefix) + _integer(4, False))  # spaces stay as they are


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
