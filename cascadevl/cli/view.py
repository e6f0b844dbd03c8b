"""What one model makes of a conversation, for people to read."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cascadevl.core.messages import Conversation

if TYPE_CHECKING:
    from torch import Tensor

    from cascadevl.preprocessing.processor import Processor
    from cascadevl.preprocessing.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What one model makes of a conversation."""

    spec: dict[str, Any]
    tokens: list[str]
    """The prompt token by token, each run of placeholders as one, such as `<IMG_CONTEXT>×96`."""
    trained: list[bool]
    """Which of `tokens` the model learns to say."""
    num_tokens: int
    num_visual_tokens: int
    num_trained: int
    grids: list[tuple[int, int]]
    tiles: "Tensor"
    """(S, 3, Y, X) uint8."""

    @classmethod
    def of(cls, processor: "Processor", conversation: Conversation, max_tiles: int | None = None) -> "View":
        inputs = processor(conversation, max_tiles=max_tiles)
        spec = processor.spec
        said = readable(processor.tokenizer, inputs.token_ids.tolist())
        runs = collapse(list(zip(said, inputs.trained.tolist(), strict=True)), spec.image_context)
        return cls(
            spec={**spec.to_dict(), "hash": spec.hash},
            tokens=[token for token, _ in runs],
            trained=[trained for _, trained in runs],
            num_tokens=len(inputs.token_ids),
            num_visual_tokens=inputs.num_visual_tokens,
            num_trained=int(inputs.trained.sum()),
            grids=inputs.grids,
            tiles=inputs.tiles,
        )

    @property
    def summary(self) -> str:
        grids = ", ".join(f"{columns}×{rows}" for columns, rows in self.grids)
        tokens = f"{self.num_tokens} tokens, {self.num_visual_tokens} visual"
        return f"{tokens}; {len(self.tiles)} tiles, grid {grids}"

    def facts(self) -> dict[str, Any]:
        return {
            "spec_hash": self.spec["hash"],
            "prompt": self.tokens,
            "prompt_tokens": self.num_tokens,
            "visual_tokens": self.num_visual_tokens,
            "trained_tokens": self.num_trained,
            "tiles": list(self.tiles.shape),
            "grids": self.grids,
        }


def readable(tokenizer: "TextTokenizer", token_ids: Sequence[int]) -> list[str]:
    """One text per token; a character made of several tokens stands whole at its last."""
    controls = {token_id: name for name, token_id in tokenizer.controls.items()}
    stream = tokenizer.stream()
    return [controls.get(token_id) or stream.push(token_id) for token_id in token_ids]


def collapse(tokens: Sequence[tuple[str, bool]], placeholder: str) -> list[tuple[str, bool]]:
    """Tokens and whether they are trained, runs of the placeholder as one entry that counts them."""
    collapsed: list[tuple[str, bool]] = []
    for (token, trained), run in itertools.groupby(tokens):
        same = list(run)
        collapsed += [(f"{token}×{len(same)}", trained)] if token == placeholder else same
    return collapsed
