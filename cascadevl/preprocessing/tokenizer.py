"""A tokenizer folder behind one class; control tokens go in by id only, never out of text."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, models, pre_tokenizers, trainers

from cascadevl.core.errors import CheckpointError, MessageError, UserError
from cascadevl.preprocessing.parse import CHANNEL, MESSAGE, ChannelReader
from cascadevl.preprocessing.tokenizer_files import MODEL_FILE, SPECIAL_TOKENS, added_tokens, config_of, texts
from cascadevl.preprocessing.tokenizer_json import JsonBackend, byte_level, qwen_definition

MARK_RANGE = range(0xF0000, 0xFFFFE)
"""Private-use characters, one of which marks text that only looks like a control token."""


class BackendStream(Protocol):
    """Ids to text, one at a time."""

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class Backend(Protocol):
    """A vocabulary, whatever library reads it."""

    controls: dict[str, int]
    strips: dict[str, tuple[bool, bool]]
    """Control token -> whether it swallows the white space to its left, and to its right."""

    def __len__(self) -> int: ...

    def id(self, token: str) -> int | None: ...

    def piece(self, token_id: int) -> str:
        """What stands in the vocabulary itself, under any added token."""
        ...

    def encode(self, text: str, inside: bool) -> list[int]:
        """Plain text; `inside` where it goes on with a text, rather than stand behind a control token."""
        ...

    def opening(self, rendered: str) -> list[int]:
        """What stands in front of a prompt that begins so."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def stream(self) -> BackendStream: ...


class TextTokenizer:
    """Encodes plain text, looks up control tokens, decodes answers."""

    def __init__(self, source: dict[str, Any] | Backend, files: Mapping[str, str | bytes]) -> None:
        """`source`: what a tokenizer.json says, or a backend that is ready."""
        self.files = dict(files)
        """Names and contents of the files this came from, to be written back as they were."""
        self.backend: Backend = JsonBackend(source) if isinstance(source, dict) else source
        self.controls = self.backend.controls
        self._names = {token_id: token for token, token_id in self.controls.items()}
        self._has_channels = {CHANNEL, MESSAGE} <= self.controls.keys()
        longest_first = sorted(self.controls, key=len, reverse=True)
        self._lookalike = re.compile(
            "(?=(?:" + ("|".join(map(re.escape, longest_first)) or r"(?!)") + "))(.)", re.DOTALL
        )
        self._splitter = re.compile("|".join(map(self._pattern, longest_first)) or r"(?!)")

    def _pattern(self, token: str) -> str:
        left, right = self.backend.strips.get(token, (False, False))
        return r"\s*" * left + re.escape(token) + r"\s*" * right

    @classmethod
    def from_folder(cls, folder: Path) -> "TextTokenizer":
        """From tokenizer.json, or what slow tokenizers keep: Qwen's vocab.json and merges.txt, or tokenizer.model."""
        folder = Path(folder)
        try:
            files: dict[str, Any] = texts(folder)
            if (folder / MODEL_FILE).is_file():
                files[MODEL_FILE] = (folder / MODEL_FILE).read_bytes()
            if "tokenizer.json" in files:
                return cls(json.loads(files["tokenizer.json"]), files)
            if "vocab.json" in files and "merges.txt" in files:
                return cls(qwen_definition(files), files)
            if MODEL_FILE in files:
                from cascadevl.preprocessing.tokenizer_sentencepiece import SentencePieceBackend

                return cls(SentencePieceBackend(files[MODEL_FILE], config_of(files), added_tokens(files)), files)
        except UserError:
            raise
        except Exception as error:  # the libraries raise bare Exceptions
            raise CheckpointError(f"The tokenizer files in {folder} cannot be read: {error}") from error
        raise CheckpointError(
            f"{folder} has no tokenizer: expected tokenizer.json, or vocab.json with merges.txt, or {MODEL_FILE}; "
            f"found {sorted(files)}."
        )

    def __len__(self) -> int:
        """Entries, added tokens included."""
        return len(self.backend)

    def id(self, token: str) -> int:
        """Id of one entry; ids of control tokens are looked up, never assumed."""
        found = self.backend.id(token)
        if found is None:
            raise CheckpointError(f"The tokenizer has no entry {token!r}; an InternVL tokenizer needs it.")
        return found

    def encode(self, text: str, *, inside: bool = False) -> list[int]:
        """Plain text to ids as it stands behind a control token; no control token can come out.

        `inside`: it goes on with a text that was encoded before. Only tokenizers that put a space
        before words make a difference. Raises MessageError for what UTF-8 cannot hold.
        """
        try:
            ids = self.backend.encode(text, inside) if text else []
        except (TypeError, UnicodeEncodeError) as error:  # the libraries' words for a lone surrogate
            raise MessageError(
                f"The text {text!r:.80} has half of a character, which UTF-8 cannot hold: read it in the encoding that "
                "it was written in."
            ) from error
        if self._names.keys().isdisjoint(ids):
            return ids
        # An entry of the model itself, such as InternLM2's [UNUSED_TOKEN_146] under <|im_start|>: spelled out.
        return [j for i in ids for j in (self._spelled(i) if i in self._names else [i])]

    def _spelled(self, token_id: int) -> list[int]:
        letters = self.backend.piece(token_id)
        return [i for letter in letters for i in self.backend.encode(letter, True) if i not in self._names]

    def opening(self, rendered: str) -> list[int]:
        """Ids that stand before a prompt that begins so, behind the BOS: nearly always none."""
        return self.backend.opening(rendered)

    def split(self, rendered: str) -> list[str]:
        """A rendered prompt cut at its control tokens; these stand alone in the list.

        White space beside a control token that swallows it (Phi-3) is gone.
        """
        pieces, at = [], 0
        for match in self._splitter.finditer(rendered):
            pieces += [rendered[at : match.start()], match.group().strip()]
            at = match.end()
        return [piece for piece in (*pieces, rendered[at:]) if piece]

    def disarm(self, text: str, mark: str) -> str:
        """Put `mark` inside whatever looks like a control token, so that `split` passes it by."""
        return self._lookalike.sub(lambda match: match.group(1) + mark, text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer: control tokens left out, boxes and references kept.

        An answer in channels (GPT-OSS) shows its thinking in `<think>…</think>` and no headers.
        """
        if not self._has_channels:
            return self.backend.decode([i for i in token_ids if i not in self._names])
        stream = self.stream()
        return "".join(map(stream.push, token_ids)) + stream.finish()

    def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Each id as readable text, for people who want to see a prompt."""
        return [self._names.get(i) or self.backend.decode([i]) for i in token_ids]

    def stream(self) -> "TextStream":
        """Decode one token at a time; a character split over tokens waits until it is whole."""
        return TextStream(self.backend.stream(), self._names, ChannelReader() if self._has_channels else None)


class TextStream:
    """`push(id)` gives the text that became certain, often one piece, sometimes none; `finish()` the rest."""

    def __init__(self, pieces: BackendStream, names: Mapping[int, str], channels: ChannelReader | None) -> None:
        self._pieces, self._names, self._channels = pieces, names, channels

    def push(self, token_id: int) -> str:
        if token_id not in self._names:
            return self._shown(self._pieces.push(token_id))
        return self.finish() + self._channels.mark(self._names[token_id]) if self._channels else ""

    def finish(self) -> str:
        """What waited for the end of a character that never came, as `decode` shows it."""
        return self._shown(self._pieces.finish())

    def _shown(self, piece: str) -> str:
        return self._channels.text(piece) if self._channels else piece


def train_tokenizer(texts: Iterable[str], num_entries: int) -> dict[str, str]:
    """The files of a new byte-level BPE tokenizer of Qwen type with the InternVL special tokens.

    Without texts it holds the 256 bytes and no merges. Control tokens come after `num_entries`.
    """
    backend = byte_level(models.BPE())
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
