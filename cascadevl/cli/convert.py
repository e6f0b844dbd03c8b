"""Rewrite a checkpoint in another official layout; the parity report says how equal the two are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cascadevl.checkpoints.adapter_config import read_config
from cascadevl.checkpoints.layouts import locate


@dataclass(frozen=True, kw_only=True, slots=True)
class Convert:
    """Rewrite a checkpoint in another official layout, and prove it equal.

    The report also lies in DST/parity.json. DST is written whole or not at all.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """An embedded model, a folder, or a hub id."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """The folder to make."""
    layout: Literal["hf", "chat"]
    """hf: transformers' own (InternVL…-HF). chat: the remote-code layout of the releases."""
    adapter: Path | None = None
    """A PEFT LoRA folder that is merged into the weights."""


def main(arguments: list[str]) -> int:
    order = tyro.cli(Convert, prog="cascadevl convert", args=arguments)
    locate(order.source)
    if order.adapter is not None:
        read_config(order.adapter)

    from cascadevl.checkpoints.convert import convert

    report = convert(order.source, order.target, order.layout, adapter=order.adapter)
    print(f"{order.source} -> {order.target} (layout {order.layout})")
    for name, value in report.items():
        if not isinstance(value, dict | list):
            print(f"  {name}: {value}")
    return 0
