"""What a picture and a question become, and where two models disagree about it.

Only tokenizer and spec are read, never weights: a model of any size is shown in a second.
"""

import difflib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cascadevl.checkpoints.layouts import locate
from cascadevl.core.messages import Conversation
from cascadevl.preprocessing.image import open_image

if TYPE_CHECKING:
    from torch import Tensor

    from cascadevl.preprocessing.processor import Processor
    from cascadevl.preprocessing.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Show:
    """Print the prompt that a picture and a question become."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """An embedded model, a folder, or a hub id."""
    image: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE")]
    """Path of a picture."""
    question: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="QUESTION")]
    """The text behind the picture."""
    max_tiles: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Tile limit; None leaves it to the model."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diff:
    """Show where two models make different inputs of the same picture: spec, prompt, pixels."""

    a: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="A")]
    """An embedded model, a folder, or a hub id."""
    b: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="B")]
    """Another one."""
    image: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE")]
    """Path of a picture."""
    question: str = "Describe the picture."
    """The text behind the picture."""
    json: bool = False
    """Print one JSON object."""


def main(arguments: list[str]) -> int:
    order = tyro.extras.subcommand_cli_from_dict(
        {"show": Show, "diff": Diff},
        prog="cascadevl data",
        description="What a picture and a question become. Reads tokenizer and spec, never weights.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    conversation = Conversation.ask(order.question, [open_image(order.image)])
    models = [order.model] if isinstance(order, Show) else [order.a, order.b]
    for model in models:
        locate(model)
    return show(order, conversation) if isinstance(order, Show) else diff(order, conversation)


def show(order: Show, conversation: Conversation) -> int:
    from cascadevl.checkpoints.load import load_processor

    view = View.of(load_processor(order.model), conversation, order.max_tiles)
    if order.json:
        print(json.dumps(view.facts(), ensure_ascii=False))
        return 0
    print("".join(view.tokens))
    print(f"\n{view.summary}; spec {view.spec['hash']}")
    return 0


def diff(order: Diff, conversation: Conversation) -> int:
    from cascadevl.checkpoints.load import load_processor

    a, b = (View.of(load_processor(model), conversation) for model in (order.a, order.b))
    fields = {name: (a.spec[name], b.spec[name]) for name in a.spec if a.spec[name] != b.spec[name]}
    pixels = pixel_delta(a.tiles, b.tiles)
    same = not fields and a.tokens == b.tokens and pixels == {"max": 0, "differing": 0.0}
    if order.json:
        facts = {"same": same, "spec": fields, "pixels": pixels, "a": a.facts(), "b": b.facts()}
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    if same:
        print(f"Same: {a.summary}, every pixel equal; spec {a.spec['hash']}")
        return 0
    table = Table("", *(Column(Text(model), overflow="fold") for model in (order.a, order.b)))
    for name, values in fields.items():
        table.add_row(name, *(Text(repr(value)) for value in values))
    table.add_section()
    table.add_row("inputs", a.summary, b.summary)
    if pixels:
        table.add_row("pixels", Text(f"at most {pixels['max']}/255 apart, {pixels['differing']:.2%} differ"))
    table.add_section()
    for ours, theirs in side_by_side(a.tokens, b.tokens):
        table.add_row("prompt", Text(ours.rstrip()), Text(theirs.rstrip()), style="dim" if ours == theirs else None)
    Console().print(table)
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What one model makes of a conversation."""

    spec: dict[str, Any]
    tokens: list[str]
    """The prompt token by token, each run of placeholders as one, such as `<IMG_CONTEXT>×96`."""
    num_tokens: int
    num_visual_tokens: int
    grids: list[tuple[int, int]]
    tiles: "Tensor"
    """(S, 3, Y, X) uint8."""

    @classmethod
    def of(cls, processor: "Processor", conversation: Conversation, max_tiles: int | None = None) -> "View":
        inputs = processor(conversation, max_tiles=max_tiles)
        spec = processor.spec
        return cls(
            spec={**spec.to_dict(), "hash": spec.hash},
            tokens=collapse(readable(processor.tokenizer, inputs.token_ids.tolist()), spec.image_context),
            num_tokens=len(inputs.token_ids),
            num_visual_tokens=inputs.num_visual_tokens,
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
            "tiles": list(self.tiles.shape),
            "grids": self.grids,
        }


def readable(tokenizer: "TextTokenizer", token_ids: Sequence[int]) -> list[str]:
    """One text per token; a character made of several tokens stands whole at its last."""
    controls = {token_id: name for name, token_id in tokenizer.controls.items()}
    stream = tokenizer.stream()
    return [controls.get(token_id) or stream.push(token_id) for token_id in token_ids]


def collapse(tokens: Sequence[str], placeholder: str) -> list[str]:
    """Runs of the placeholder as one entry that counts them."""
    collapsed: list[str] = []
    for token, run in itertools.groupby(tokens):
        same = list(run)
        collapsed += [f"{token}×{len(same)}"] if token == placeholder else same
    return collapsed


def side_by_side(a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
    """Stretches of lines of two prompts, alternately equal and different.

    Where only the cutting differs, the cuts are shown: `Read| the` and `Re|ad| the`.
    """
    a_lines, b_lines = _lines(a), _lines(b)
    rows = []
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, a_lines, b_lines, autojunk=False).get_opcodes():
        ours, theirs = (list(itertools.chain(*lines)) for lines in (a_lines[i1:i2], b_lines[j1:j2]))
        cut = "|" if kind != "equal" and "".join(ours) == "".join(theirs) else ""
        rows.append((cut.join(ours), cut.join(theirs)))
    return rows


def _lines(tokens: Sequence[str]) -> list[tuple[str, ...]]:
    """Tokens by line; the token with the line break ends it."""
    ends = [i + 1 for i, token in enumerate(tokens) if "\n" in token]
    return [tuple(tokens[i:j]) for i, j in itertools.pairwise([0, *ends, len(tokens)]) if i < j]


def pixel_delta(a: "Tensor", b: "Tensor") -> dict[str, float] | None:
    """Largest difference and share of differing values; None where the tiles are not the same."""
    if a.shape != b.shape:
        return None
    delta = (a.short() - b.short()).abs()
    return {"max": int(delta.max()), "differing": float((delta > 0).float().mean())}
