"""What each format looks like, as JSON Schema, for editors and for programs that write data."""

from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """Print the JSON schema of a format: of one row, or of an InternVL meta file."""

    name: Annotated[
        tyro.conf.Positional[Literal["conversations", "messages", "columns", "interleaved", "meta"]],
        tyro.conf.arg(metavar="NAME"),
    ]
    """conversations (InternVL, LLaVA, ShareGPT), messages (OpenAI), columns, interleaved, or meta."""


def schema(order: Schema) -> int:
    text = resources.files("cascadevl.data").joinpath("schemas", f"{order.name}.json").read_text(encoding="utf-8")
    print(text, end="")
    return 0
