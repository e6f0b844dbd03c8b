"""Run a training recipe: its config is the command line, and what can be refused is refused before torch is loaded."""

import difflib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cascadevl.checkpoints.layouts import locate
from cascadevl.core.errors import ConfigError
from cascadevl.data.sources import open_data
from cascadevl.recipes import nano_stages, pretrain, sft
from cascadevl.training.config import Precision, TrainConfig, read_config

RECIPES: dict[str, Callable[[], TrainConfig]] = {**sft.RECIPES, **pretrain.RECIPES}
"""Recipe -> its config. nano, whose stages are its own, stands beside them."""

HELP = """\
usage: cascadevl train RECIPE --out OUT [--data PATH] [--init MODEL] [--resume] [--SETTING VALUE …]
       cascadevl train --config run.yaml --out OUT [--SETTING VALUE …]

Run a training recipe: cascadevl train sft_nano --data mine.jsonl --out runs/mine

RECIPE names settings; flags change them, and `cascadevl train RECIPE --help` tells them all. The run writes them
resolved to OUT/config.yaml, which --config reads back. --resume goes on from the last state in OUT, bit for bit as if
it had never stopped. On several GPUs: torchrun --nproc-per-node 8 -m cascadevl train RECIPE …

recipes
  nano             the embedded model from nothing, on rendered pictures
{recipes}"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Run this recipe. The settings below are its own; flags change them."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder of the run: config.yaml, log.jsonl, states/, model/ or adapter/, report.html."""
    resume: bool = False
    """Go on from the last state in OUT, with the settings it has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Nano:
    """The embedded model from nothing, on rendered pictures: cascadevl train nano --out runs/nano

    The run saves its state every few minutes; --resume goes on from there. To train nano on with everything it has
    learned to do: cascadevl train nano --init nano --from-stage joint --out runs/more
    """

    out: Path
    """Folder of the run: log.jsonl, last/ (state), model/ (the result)."""
    init: str | None = None
    """What to start from instead of fresh weights: a model (an embedded name, a folder, a hub id) or the folder of
    another run of nano, whose last state is taken."""
    from_stage: str | None = None
    """Begin with this stage: letters, words, lines, everything or joint."""
    keep: float = 0.0
    """Share of the weights that it began with in the model that comes out; 0.2 read better than 0 after an hour more
    (WiSE-FT). The state in OUT is not changed: --resume takes it anew."""
    precision: Precision = "auto"
    """Of products; weights are float32 in any case. "auto" is bfloat16 where the processor has units for it. A run
    goes on as it began."""
    resume: bool = False
    """Go on from the state in OUT."""
    seed: int = 0
    """Of weights and of data: another one trains on with other pictures."""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP.format(recipes=_listed()))
        return 0
    if arguments[0] == "nano":
        return _nano(arguments[1:])
    config, name, rest = _base(arguments)
    order = tyro.cli(
        Train,
        prog=f"cascadevl train {name}",
        args=rest,
        default=Train(config=config, out=tyro.MISSING),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    check(order)

    from cascadevl.recipes.run import train
    from cascadevl.training.interrupt import Stopped

    is_first = os.environ.get("RANK", "0") == "0"  # torchrun numbers its processes
    try:
        result = train(order.config, order.out, resume=order.resume)
    except Stopped as stopped:
        if is_first:
            again = f"`cascadevl train --out {order.out} --resume` goes on from there"
            print(f"Stopped after step {stopped.step}, which is saved: {again}.", file=sys.stderr)
        return 128 + stopped.number  # as shells tell it
    if is_first:
        print(f"The {result.name} is in {result}, what became of the run in {order.out / 'report.html'}.")
    return 0


def _base(arguments: list[str]) -> tuple[TrainConfig, str, list[str]]:
    """The config that flags change, its name, and the flags."""
    first, *rest = arguments
    if first == "--config":
        if not rest:
            raise ConfigError("--config needs a file, such as the config.yaml of a run.")
        return read_config(Path(rest[0])), f"--config {rest[0]}", rest[1:]
    if first.startswith("-"):
        if "--resume" in arguments and (out := _value(arguments, "--out")):
            return read_config(Path(out) / "config.yaml"), f"--out {out}", arguments
        raise ConfigError(f"The recipe comes first: cascadevl train RECIPE {first} … `cascadevl train` lists them.")
    if first not in RECIPES:
        close = _near(first)
        raise ConfigError(f"There is no recipe {first!r}.{close} `cascadevl train --help` lists all.")
    return RECIPES[first](), first, rest


def check(order: Train) -> None:
    """What needs no torch to be seen."""
    config, states = order.config, order.out / "states"
    config.check_complete()
    held = states.is_dir() and any(states.iterdir())
    if held and not order.resume:
        raise ConfigError(f"{order.out} holds a run: add --resume to go on with it, or choose another --out.")
    if order.resume and not held:
        raise ConfigError(f"{order.out} holds no run to go on with: leave --resume out to start one.")
    assert config.init is not None and config.data is not None
    if not config.init.startswith("tiny:"):
        locate(config.init)
    if config.data.startswith("gym:"):
        return
    if not Path(config.data).exists():
        raise ConfigError(
            f"There are no data at {config.data!r}: expected JSONL, parquet, a tar, a folder, or a meta file."
        )
    open_data(config.data, config.data_format)  # files that cannot be read at all


def _nano(arguments: list[str]) -> int:
    order = tyro.cli(Nano, prog="cascadevl train nano", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    state = order.out / "last"
    if state.is_dir() and not order.resume:
        raise ConfigError(f"{order.out} holds a run: add --resume to go on with it, or choose another --out.")
    if order.resume and not state.is_dir():
        raise ConfigError(f"{order.out} holds no run to go on with: leave --resume out to start one.")
    if order.resume and (order.init or order.from_stage):
        raise ConfigError("--resume goes on where the run stands: leave --init and --from-stage out.")
    if order.init is not None and not nano_stages.is_run(order.init):
        locate(order.init)
    if not 0 <= order.keep < 1:
        raise ConfigError(f"--keep is a share of the weights, from 0 to below 1, got {order.keep}.")
    if order.from_stage is not None:
        nano_stages.number_of(order.from_stage, nano_stages.stages())

    from cascadevl.recipes import nano_run

    nano_run.train(
        order.out,
        init=order.init,
        from_stage=order.from_stage,
        keep=order.keep,
        precision=order.precision,
        resume=order.resume,
        seed=order.seed,
    )
    print(f"The model is in {order.out / 'model'}.")
    return 0


def _listed() -> str:
    """The small ones with a line each, the published ones by their stage."""
    rows = [f"  {name:<16} {_line(name)}" for name in ("tiny", "sft_nano", "sft_nano_lora")]
    stages: dict[str, list[str]] = {}
    for name, recipe in RECIPES.items():
        size = recipe.args[0] if hasattr(recipe, "args") else None  # type: ignore[attr-defined]
        if size is not None:
            stages.setdefault(name.replace(f"_{size}_", "_SIZE_"), []).append(size)
    rows += [f"  {stage}\n{'':19}SIZE: {', '.join(sizes)}" for stage, sizes in sorted(stages.items())]
    return "\n".join(rows)


def _line(name: str) -> str:
    return (RECIPES[name].__doc__ or "").partition("\n")[0]


def _near(name: str) -> str:
    close = difflib.get_close_matches(name, ["nano", *RECIPES], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _value(arguments: Sequence[str], flag: str) -> str | None:
    return next((value for name, value in itertools.pairwise(arguments) if name == flag), None)
