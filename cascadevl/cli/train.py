"""Run a training recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from cascadevl.checkpoints.layouts import locate
from cascadevl.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Run a training recipe: cascadevl train nano --out runs/nano

    The run saves its state every few minutes; --resume goes on from there.
    """

    recipe: tyro.conf.Positional[Literal["nano"]]
    """nano: the embedded model from nothing, on rendered pictures."""
    out: Path
    """Folder of the run: log.jsonl, last/ (state), model/ (the result)."""
    init: str | None = None
    """A model to start from instead of fresh weights: an embedded name, a folder, a hub id."""
    resume: bool = False
    """Go on from the state in OUT."""
    seed: int = 0


def main(arguments: list[str]) -> int:
    order = tyro.cli(Train, prog="cascadevl train", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    state = order.out / "last"
    if state.is_dir() and not order.resume:
        raise ConfigError(f"{order.out} holds a run: add --resume to go on with it, or choose another --out.")
    if order.resume and not state.is_dir():
        raise ConfigError(f"{order.out} holds no run to go on with: leave --resume out to start one.")

    if order.init is not None:
        locate(order.init)

    from cascadevl.recipes import nano

    nano.train(order.out, init=order.init, resume=order.resume, seed=order.seed)
    print(f"The model is in {order.out / 'model'}.")
    return 0
