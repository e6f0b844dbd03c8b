"""A tokenizer.json, read by the tokenizers library; Qwen's slow files become one."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.decoders import DecodeStream

from cascadevl.core.errors import CheckpointError
from cascadevl.preprocessing.tokenizer_files import added_tokens, is_control
from cascadevl.preprocessing.tokenizer_pieces import PieceStream

_BYTE = re.compile("<0x([0-9A-F]{2})>")

_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class JsonBackend:
    """A tokenizer.json. One reading of it has everything; another no control tokens, so that
    `<|im_start|>` in a message is eight ordinary tokens and not one powerful one."""

    def __init__(self, definition: dict[str, Any]) -> None:
        self._whole = Tokenizer.from_str(json.dumps(definition))
        added = {token["content"]: token for token in definition["added_tokens"]}
        for content, token in added.items():  # the library counts on from its vocabulary, whatever the file says
            if self._whole.token_to_id(content) != token["id"]:
                raise CheckpointError(
                    f"The tokenizer gives {content!r} the id {token['id']}, but its vocabulary leads to "
                    f"{self._whole.token_to_id(content)}: entries are missing, or files of two models were mixed."
                )
        self.controls = {c: t["id"] for c, t in added.items() if is_control(c, t["special"])}
        self.strips = {c: (bool(added[c].get("lstrip")), bool(added[c].get("rstrip"))) for c in self.controls}
        kept = [token for content, token in added.items() if content not in self.controls]
        plain = {**definition, "added_tokens": kept, "post_processor": None}
        behind, inside = (_without_prefix(plain, every) for every in (False, True))
        self._behind = Tokenizer.from_str(json.dumps(behind))
        self._inside = Tokenizer.from_str(json.dumps(inside)) if inside != behind else self._behind
        self.added = {token["id"]: content for content, token in added.items()}
        self._has_pieces = '"ByteFallback"' in json.dumps(definition["decoder"])
        self.drops_first = '"Strip"' in json.dumps(definition["decoder"])
        self.drops_each = behind != inside
        # The library numbers added tokens as it likes: without the control tokens, others move up.
        self._official = {self._behind.token_to_id(token["content"]): token["id"] for token in kept}

    def __len__(self) -> int:
        return self._whole.get_vocab_size(with_added_tokens=True)

    def id(self, token: str) -> int | None:
        return self._whole.token_to_id(token)

    def piece(self, token_id: int) -> str:
        return self._whole.id_to_token(token_id) or ""

    def encode(self, text: str, inside: bool) -> list[int]:
        backend = self._inside if inside else self._behind
        # `encode` takes longer, for offsets that nobody reads, and lets no other thread run meanwhile.
        (encoding,) = backend.encode_batch_fast([text], add_special_tokens=False)
        return [self._official.get(i, i) for i in encoding.ids]

    def opening(self, rendered: str) -> list[int]:
        return []

    def byte(self, token_id: int) -> int | None:
        match = _BYTE.fullmatch(self.piece(token_id)) if token_id not in self.added else None
        return int(match[1], 16) if match else None

    def decode(self, token_ids: Sequence[int]) -> str:
        if not self._has_pieces:
            return self._whole.decode(token_ids, skip_special_tokens=False)
        stream = self.stream()
        return "".join(map(stream.push, token_ids)) + stream.finish()

    def stream(self) -> "JsonStream | PieceStream":
        return PieceStream(self) if self._has_pieces else JsonStream(self._whole)


class JsonStream:
    """The library's own stream, and what it holds back."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=False)
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        piece = self._stream.step(self._backend, token_id) or ""
        self._waiting = [] if piece else [*self._waiting, token_id]
        return piece

    def finish(self) -> str:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._stream = DecodeStream(skip_special_tokens=False)
        return self._backend.decode(waiting, skip_special_tokens=False)


def _without_prefix(definition: dict[str, Any], everywhere: bool) -> dict[str, Any]:
    """The same tokenizer, putting no space before a text that only begins the stretch it is given.

    Metaspace's "first" means the whole prompt, which our stretches never begin. `everywhere` also
    drops what is put before every stretch behind a control token.
    """

    def plainer(part: Any) -> Any:
        if isinstance(part, list):
            kept = [p for p in part if not (everywhere and isinstance(p, dict) and p.get("type") == "Prepend")]
            return [plainer(p) for p in kept]
        if not isinstance(part, dict):
            return part
        if part.get("type") == "Metaspace" and (everywhere or part.get("prepend_scheme") == "first"):
            return {**part, "prepend_scheme": "never", "add_prefix_space": False}
        return {key: plainer(value) for key, value in part.items()}

    steps = {name: plainer([definition.get(name)]) for name in ("normalizer", "pre_tokenizer")}
    return {**definition, **{name: found[0] if found else None for name, found in steps.items()}}


def byte_level(model: models.Model) -> Tokenizer:
    """Byte-level BPE over NFC text, cut into words as Qwen does."""
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def qwen_definition(files: Mapping[str, str]) -> dict[str, Any]:
    """The fast form of a slow Qwen2 tokenizer, whose files are vocab.json and merges.txt."""
    vocabulary = json.loads(files["vocab.json"])
    lines = [line for line in files["merges.txt"].split("\n") if line and not line.startswith("#version")]
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    backend = byte_level(models.BPE(vocab=vocabulary, merges=merges))
    added = added_tokens(files)
    for i, token in sorted(added.items()):
        flags = {key: bool(token.get(key, False)) for key in ("lstrip", "rstrip", "single_word", "normalized")}
        entry = AddedToken(token["content"], special=bool(token.get("special", False)), **flags)
        (backend.add_special_tokens if entry.special else backend.add_tokens)([entry])
        if backend.token_to_id(token["content"]) != i:
            raise CheckpointError(
                f"added token {token['content']!r} should have the id {i}, but the vocabulary gives "
                f"{backend.token_to_id(token['content'])}: vocab.json and added_tokens.json do not belong together."
            )
    return json.loads(backend.to_str())
