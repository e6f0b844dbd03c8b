"""SentencePiece models (`tokenizer.model`) as the slow tokenizers of the releases read them.

InternVL is trained and run with slow tokenizers (`use_fast=False`), and these treat the spaces
around added tokens each in its own way:

- InternLM2 (`tokenization_internlm2.py` in OpenGVLab/InternVL) cuts the text at every added token and
  gives each stretch, its spaces untouched, to SentencePiece with the model's own setting of the dummy
  prefix. An added token may rename a piece of the model: id 92543 is `<|im_start|>` over
  `[UNUSED_TOKEN_146]`. Its `convert_tokens_to_string` adds a space and takes it away again, so that
  decoding is SentencePiece's. InternLM3 is the same.
- LlamaTokenizer with `legacy` (the default of old files; Yi-34B) is the same too; its models have the
  dummy prefix, so that the text behind every added token begins with ▁.
- LlamaTokenizer without `legacy` (Phi-3) has the prefix only where the whole prompt begins: a ▁ by
  itself where an added token comes first, unless that is one of the named special tokens
  (`LlamaTokenizer.tokenize` of transformers 4.37; InternVL's `preprocess_phi3` counts on that ▁).

What is ours: stretches of an answer are joined without spaces around `<ref>` and `<box>`, where slow
tokenizers put some, so that a text that was encoded comes back.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cascadevl.core.errors import CheckpointError, MissingExtra
from cascadevl.preprocessing.tokenizer_files import MODEL_FILE, is_control
from cascadevl.preprocessing.tokenizer_pieces import SPACE, PieceStream

_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
"""`normalizer_spec {add_dummy_prefix: false}`: a message that protobuf merges into the model it is appended to."""

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class SentencePieceBackend:
    """The pieces of a model, and added tokens laid over them."""

    def __init__(self, model: bytes, config: Mapping[str, Any], added: Mapping[int, Mapping[str, Any]]) -> None:
        """`config`: tokenizer_config.json; `added`: id -> content and flags."""
        self._model, self._bare = _read(model), _read(model + _NO_DUMMY_PREFIX)
        self.added = {i: token["content"] for i, token in added.items()}
        self._ids = {content: i for i, content in self.added.items()}
        self._check_ids()
        special = {token["content"]: bool(token.get("special", False)) for token in added.values()}
        pieces = (
            i for i in range(self._model.get_piece_size()) if self._model.is_control(i) or self._model.is_unknown(i)
        )
        self.controls = {
            **{self.piece(i): i for i in pieces},
            **{content: self._ids[content] for content, s in special.items() if is_control(content, s)},
        }
        strips = {t["content"]: (bool(t.get("lstrip")), bool(t.get("rstrip"))) for t in added.values()}
        self.strips = {content: strips[content] for content in self.controls if content in strips}
        self._kept = {content: flags for content, flags in strips.items() if content not in self.controls}
        self._splitter = re.compile("|".join(map(re.escape, sorted(self._kept, key=len, reverse=True))) or r"(?!)")
        llama = "Llama" in config.get("tokenizer_class", "LlamaTokenizer")
        self.legacy = not llama or config.get("legacy") is not False
        self.drops_first = self._model.encode("a") != self._bare.encode("a")  # what the model puts in front of a text
        self.drops_each = self.drops_first and self.legacy
        self._unknown = self._model.id_to_piece(self._model.unk_id())
        named = [config.get(name) for name in _NAMED] + list(config.get("additional_special_tokens") or [])
        self._named = {token["content"] if isinstance(token, dict) else token for token in named}

    def _check_ids(self) -> None:
        size = self._model.get_piece_size()
        beyond = sorted(i for i in self.added if i >= size)
        if beyond != list(range(size, size + len(beyond))):
            raise CheckpointError(
                f"{MODEL_FILE} has {size} pieces, but the added tokens behind them have the ids {beyond}: "
                "entries are missing, or files of two models were mixed."
            )
        for content, i in self._ids.items():
            piece = self._model.piece_to_id(content)
            if self._model.id_to_piece(piece) == content and piece != i:
                raise CheckpointError(
                    f"{content!r} is piece {piece} of {MODEL_FILE}, but the added token {i}: "
                    "files of two models were mixed."
                )

    def __len__(self) -> int:
        return max(self._model.get_piece_size(), max(self.added, default=-1) + 1)

    def id(self, token: str) -> int | None:
        piece = self._model.piece_to_id(token)
        is_piece = self._model.id_to_piece(piece) == token and piece not in self.added
        return self._ids.get(token, piece if is_piece else None)

    def piece(self, token_id: int) -> str:
        return self._model.id_to_piece(token_id) if 0 <= token_id < self._model.get_piece_size() else ""

    def encode(self, text: str, inside: bool) -> list[int]:
        ids: list[int] = []
        at = 0
        swallow = False
        for match in self._splitter.finditer(text):
            left, right = self._kept[match.group()]
            stretch = text[at : match.start()]
            ids += self._stretch(_stripped(stretch, swallow, left), inside and not at)
            ids.append(self._ids[match.group()])
            at, swallow = match.end(), right
        return ids + self._stretch(_stripped(text[at:], swallow, False), inside and not at)

    def _stretch(self, text: str, inside: bool) -> list[int]:
        """Text without added tokens. Without `legacy` a leading space is kept by hiding it behind `<unk>`."""
        if self.legacy and not inside:
            return self._model.encode(text)
        if self.legacy or not text.startswith((SPACE, " ")):
            return self._bare.encode(text)
        return self._bare.encode(self._unknown + text)[len(self._bare.encode(self._unknown)) :]

    def opening(self, rendered: str) -> list[int]:
        if self.legacy or not self.drops_first or rendered.startswith(tuple(filter(None, self._named))):
            return []
        return [self._model.piece_to_id(SPACE)]

    def decode(self, token_ids: Sequence[int]) -> str:
        stream = self.stream()
        return "".join(map(stream.push, token_ids)) + stream.finish()

    def stream(self) -> PieceStream:
        return PieceStream(self)

    def byte(self, token_id: int) -> int | None:
        if token_id in self.added or not 0 <= token_id < self._model.get_piece_size():
            return None
        return int(self.piece(token_id)[1:-1], 16) if self._model.is_byte(token_id) else None


def _stripped(text: str, left: bool, right: bool) -> str:
    text = text.lstrip() if left else text
    return text.rstrip() if right else text


def _read(model: bytes) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingExtra(
            f"The tokenizer is a {MODEL_FILE}, which SentencePiece reads: pip install 'cascadevl[sentencepiece]'"
        ) from error
    return sentencepiece.SentencePieceProcessor(model_proto=model)
