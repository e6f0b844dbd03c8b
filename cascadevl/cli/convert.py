"""Rewrite a checkpoint in another official layout, or make one of a tower and a language model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cascadevl.checkpoints.adapter_config import read_config
from cascadevl.checkpoints.layouts import locate
from cascadevl.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Convert:
    """Rewrite a checkpoint in another official layout, and prove it equal.

    The report also lies in DST/parity.json. DST is written whole or not at all. With --vision, SRC is a language model
    by itself, and DST becomes what the published first stages of training start from: that tower, that language model
    with InternVL's tokens, and a fresh projector between them.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """An embedded model, a folder, or a hub id."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """The folder to make."""
    layout: Literal["hf", "chat"]
    """hf: transformers' own (InternVL…-HF). chat: the remote-code layout of the releases."""
    adapter: Path | None = None
    """A PEFT LoRA folder that is merged into the weights."""
    vision: str | None = None
    """A tower for the language model SRC: an InternViT folder, or an InternVL whose tower is taken."""
    template: str | None = None
    """With --vision: the chat template; left out, the one that released models of SRC's family have."""


def main(arguments: list[str]) -> int:
    order = tyro.cli(Convert, prog="cascadevl convert", args=arguments)
    if order.vision is not None:
        return _join(order)
    if order.template is not None:
        raise ConfigError("--template belongs to --vision: a whole model keeps the template it has.")
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


def _join(order: Convert) -> int:
    """A new model of parts: nothing to be equal to, so no report."""
    assert order.vision is not None
    if order.adapter is not None:
        raise ConfigError("--adapter cannot be merged while --vision makes a new model: merge it into SRC before.")
    locate(order.vision)
    if not order.source.endswith(".gguf"):
        locate(order.source)

    from cascadevl.checkpoints.graft import join
    from cascadevl.checkpoints.save import check_target, save_parts

    check_target(order.target, order.layout)
    parts = join(order.vision, order.source, template=order.template)
    save_parts(parts, order.target, layout=order.layout)
    decoder, spec = parts.model.config.decoder, parts.spec
    print(f"{order.vision} + {order.source} -> {order.target} (layout {order.layout})")
    print(f"  parameters: {sum(p.numel() for p in parts.model.parameters()):,}, the projector's are random")
    print(f"  language model: {decoder.family}, {decoder.vocab_size:,} tokens, template {spec.template}")
    print(f"  {spec.image_context}: {parts.model.config.image_token_id}")
    return 0
