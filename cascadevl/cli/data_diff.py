"""Where two models make different inputs of the same picture.

Only tokenizer and spec are read, never weights: models of any size are compared in a second.
"""

import difflib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from cascadevl.checkpoints.layouts import locate
from cascadevl.cli.view import View
from cascadevl.core.messages import Conversation
from cascadevl.preprocessing.image import open_image

if TYPE_CHECKING:
    from torch import Tensor


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


def diff(order: Diff) -> int:
    conversation = Conversation.ask(order.question, [open_image(order.image)])
    for model in (order.a, order.b):
        locate(model)
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
