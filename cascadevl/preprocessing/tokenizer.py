"""A tokenizer folder behind one class; control tokens go in by id only, never out of text."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import DecodeStream

from cascadevl.core.errors import CheckpointError

SPECIAL_TOKENS = (
    *("<img>", "</img>", "<IMG_CONTEXT>"),
    *("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)
"""The nine tokens that every InternVL adds, in their official order."""

SPOKEN = frozenset({"<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"})
"""Special tokens that are part of what people and models say: typed in questions, kept in answers."""

MARK_RANGE = range(0xF0000, 0xFFFFE)
"""Private-use characters, one of which marks text that only looks like a control token."""

_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TextTokenizer:
    """Encodes plain text, looks up control tokens, decodes answers.

    Two backends share a vocabulary: the whole one decodes; the plain one has no control tokens, so
    that `<|im_start|>` in a message is eight ordinary tokens and not one powerful one.
    """

    def __init__(self, definition: dict[str, Any], files: dict[str, str]) -> None:
        self.files = files
        """Names and contents of the files this came from, to be written back as they were."""
        self._whole = Tokenizer.from_str(json.dumps(definition))
        added = {token["content"]: token for token in definition["added_tokens"]}
        for content, token in added.items():  # the backend counts on from its vocabulary, whatever the file says
            if self._whole.token_to_id(content) != token["id"]:
                raise CheckpointError(
                    f"The tokenizer gives {content!r} the id {token['id']}, but its vocabulary leads to "
                    f"{self._whole.token_to_id(content)}: entries are missing, or files of two models were mixed."
                )
        self.controls: dict[str, int] = {
            content: token["id"]
            for content, token in added.items()
            if (token["special"] or content in SPECIAL_TOKENS) and content not in SPOKEN
        }
        plain = {**definition, "added_tokens": [t for t in added.values() if t["content"] not in self.controls]}
        plain["post_processor"] = None
        self._plain = Tokenizer.from_str(json.dumps(plain))
        # The backend numbers added tokens as it likes: without the control tokens, others move up.
        kept = [token["content"] for token in plain["added_tokens"]]
        self._official = {self._plain.token_to_id(content): added[content]["id"] for content in kept}
        self._control_ids = frozenset(self.controls.values())
        self._splitter = re.compile("|".join(map(re.escape, sorted(self.controls, key=len, reverse=True))) or r"(?!)")

    @classmethod
    def from_folder(cls, folder: Path) -> "TextTokenizer":
        """From tokenizer.json, or from vocab.json and merges.txt of the Qwen releases."""
        folder = Path(folder)
        try:
            files = {name: (folder / name).read_text(encoding="utf-8") for name in _FILES if (folder / name).is_file()}
            if "tokenizer.json" in files:
                return cls(json.loads(files["tokenizer.json"]), files)
            if "vocab.json" in files and "merges.txt" in files:
                return cls(_qwen_definition(files), files)
        except CheckpointError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise CheckpointError(f"The tokenizer files in {folder} cannot be read: {error}") from error
        raise CheckpointError(
            f"{folder} has no tokenizer: expected tokenizer.json, or vocab.json with merges.txt; found {sorted(files)}."
        )

    def __len__(self) -> int:
        """Entries, added tokens included."""
        return self._whole.get_vocab_size(with_added_tokens=True)

    def id(self, token: str) -> int:
        """Id of one entry; ids of control tokens are looked up, never assumed."""
        found = self._whole.token_to_id(token)
        if found is None:
            raise CheckpointError(f"The tokenizer has no entry {token!r}; an InternVL tokenizer needs it.")
        return found

    def encode(self, text: str) -> list[int]:
        """Plain text to ids; no control token can come out."""
        ids = self._plain.encode(text, add_special_tokens=False).ids if text else []
        return [self._official.get(i, i) for i in ids]

    def split(self, rendered: str) -> list[str]:
        """A rendered prompt cut at its control tokens; these stand alone in the list."""
        pieces, at = [], 0
        for match in self._splitter.finditer(rendered):
            pieces += [rendered[at : match.start()], match.group()]
            at = match.end()
        return [piece for piece in (*pieces, rendered[at:]) if piece]

    def disarm(self, text: str, mark: str) -> str:
        """Put `mark` inside whatever looks like a control token, so that `split` passes it by."""
        lookalike = f"(?=(?:{self._splitter.pattern}))(.)"
        return re.sub(lookalike, lambda match: match.group(1) + mark, text, flags=re.DOTALL)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer: control tokens left out, boxes and references kept."""
        kept = [i for i in token_ids if i not in self._control_ids]
        return self._whole.decode(kept, skip_special_tokens=False)

    def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Each id as readable text, for people who want to see a prompt."""
        return [self._whole.decode([i], skip_special_tokens=False) for i in token_ids]

    def stream(self) -> "TextStream":
        """Decode one token at a time; a character split over tokens waits until it is whole."""
        return TextStream(self._whole, self._control_ids)


class TextStream:
    """`push(id)` gives the text that became certain, often one piece, sometimes none; `finish()` the rest."""

    def __init__(self, backend: Tokenizer, control_ids: frozenset[int]) -> None:
        self._backend, self._control_ids = backend, control_ids
        self._stream = DecodeStream(skip_special_tokens=False)
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        if token_id in self._control_ids:
            return ""
        piece = self._stream.step(self._backend, token_id) or ""
        self._waiting = [] if piece else [*self._waiting, token_id]
        return piece

    def finish(self) -> str:
        """What waited for the end of a character that never came, as `decode` shows it."""
        waiting, self._waiting = self._waiting, []
        return self._backend.decode(waiting, skip_special_tokens=False)


_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt"),
)


def train_tokenizer(texts: Iterable[str], num_entries: int) -> dict[str, str]:
    """The files of a new byte-level BPE tokenizer of Qwen type with the InternVL special tokens.

    Without texts it holds the 256 bytes and no merges. Control tokens come after `num_entries`.
    """
    backend = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=num_entries, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    chat = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(token, special=True) for token in (*chat, *SPECIAL_TOKENS)])
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 8192,
    }
    return {"tokenizer.json": backend.to_str(), "tokenizer_config.json": json.dumps(config, indent=2)}


def _byte_level(model: models.Model) -> Tokenizer:
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


def _qwen_definition(files: dict[str, str]) -> dict[str, Any]:
    """The fast form of a slow Qwen2 tokenizer, whose files are vocab.json and merges.txt."""
    vocabulary = json.loads(files["vocab.json"])
    lines = [line for line in files["merges.txt"].split("\n") if line and not line.startswith("#version")]
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    backend = _byte_level(models.BPE(vocab=vocabulary, merges=merges))
    config = json.loads(files.get("tokenizer_config.json", "{}"))
    added = {int(i): token for i, token in config.get("added_tokens_decoder", {}).items()}
    for content, i in json.loads(files.get("added_tokens.json", "{}")).items():
        added.setdefault(i, {"content": content, "special": content in SPECIAL_TOKENS or content.startswith("<|")})
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
