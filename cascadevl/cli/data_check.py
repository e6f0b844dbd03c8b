"""Look at every row before training: what is wrong, what to do, and a copy in which it is done."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from cascadevl.checkpoints.layouts import locate
from cascadevl.core.errors import ConfigError
from cascadevl.data import check as rules
from cascadevl.data.check import Checked, CountTokens, Tally
from cascadevl.data.sources import Dataset, FileSource, open_data
from cascadevl.data.write import to_row, whole_file

NUM_SHOWN = 3
"""Rows of each kind of problem in the table; --json names more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Look at every row before training; exits with 2 if any is bad, and says which and how to mend it."""

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PATH")]
    """A file (.jsonl, .json, .parquet, .tar), a folder of them, or an InternVL meta file."""
    fixed: Annotated[Path | None, tyro.conf.arg(metavar="OUT.jsonl")] = None
    """Write the rows that are good or can be put right, as OpenAI messages."""
    images: Literal["header", "decode"] = "header"
    """header finds pictures that are missing, empty or cut off; decode also those that are damaged inside."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """Count tokens as this model does; None counts none."""
    max_tokens: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Samples with more tokens are bad; needs --model."""
    limit_share: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.01
    """Share of bad rows above which training would stop: the last line says whether it would."""
    format: Literal["auto", "conversations", "messages", "columns", "interleaved"] = "auto"
    """Form of the rows; auto is that of the first readable row of each file."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where relative paths of pictures begin; None: where the file lies."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.model is None:
            raise ConfigError("--max-tokens counts tokens as a model does: name it with --model.")
        if not 0 <= self.limit_share < 1:
            raise ConfigError(f"--limit-share is {self.limit_share}: expected 0 ≤ share < 1.")


def check(order: Check) -> int:
    datasets = open_data(order.path, order.format, order.root)
    look = rules.Check(look=order.images, count_tokens=_counter(order.model), max_tokens=order.max_tokens)
    tally = Tally()
    if order.fixed is None:
        for checked in _followed(look(datasets), datasets):
            tally.add(checked)
    else:
        _write_fixed(order.fixed, look, datasets, tally)
    if order.json:
        print(json.dumps(facts(tally, order), ensure_ascii=False))
    else:
        _print(tally, order)
    return 2 if tally.problems else 0


def _counter(model: str | None) -> CountTokens | None:
    if model is None:
        return None
    locate(model)
    from cascadevl.checkpoints.load import load_processor
    from cascadevl.data.lengths import Lengths

    return Lengths(load_processor(model))


def _followed(rows: Iterable[Checked], datasets: Sequence[Dataset]) -> Iterable[Checked]:
    """With a bar on the terminal, if it is one."""
    total = sum(len(dataset.source) for dataset in datasets)
    console = Console(stderr=True)
    return track(rows, "checking", total=total, console=console, transient=True, disable=not sys.stderr.isatty())


def _write_fixed(path: Path, look: rules.Check, datasets: Sequence[Dataset], tally: Tally) -> None:
    if path.suffix.lower() != ".jsonl":
        raise ConfigError(f"--fixed writes JSON lines: {str(path)!r} should end with .jsonl.")
    if not path.parent.is_dir():
        raise ConfigError(f"--fixed {path}: the folder {str(path.parent)!r} does not exist; make it first.")
    read = [dataset.source.rows.path for dataset in datasets if isinstance(dataset.source, FileSource)]
    if path.exists() and any(path.samefile(each) for each in read):
        raise ConfigError("--fixed would write over what is checked: name another file.")
    with whole_file(path) as file:
        for dataset in datasets:
            for checked in _followed(look([dataset]), [dataset]):
                tally.add(checked)
                if checked.conversation is None:
                    continue
                own_id = None if any(problem.kind == "id twice" for problem in checked.problems) else checked.id
                row = to_row(checked.conversation, path.parent, id=own_id, max_tiles=dataset.max_tiles)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def facts(tally: Tally, order: Check) -> dict[str, Any]:
    return {
        "rows": tally.num_rows,
        "good": tally.num_rows - tally.num_bad - tally.num_mended,
        "bad": tally.num_bad + tally.num_mended,
        "mendable": tally.num_mended,
        "share_bad": tally.share,
        "training_would_stop": tally.share > order.limit_share,
        "fixed": None if order.fixed is None else str(order.fixed),
        "problems": [
            {
                "kind": problem.kind,
                "rows": problem.num_bad + problem.num_mended,
                "mendable": problem.num_mended,
                "first": problem.rows,
                "problem": problem.first.problem,
                "fix": problem.first.fix,
            }
            for problem in _worst_first(tally)
        ],
    }


def _worst_first(tally: Tally) -> list[rules.Problem]:
    return sorted(tally.problems.values(), key=lambda problem: -problem.num_bad - problem.num_mended)


def _print(tally: Tally, order: Check) -> None:
    console = Console()
    if tally.problems:
        table = Table("problem", "rows", "first", "what is wrong with the first one, and what to do", show_lines=True)
        for problem in _worst_first(tally):
            num_rows = problem.num_bad + problem.num_mended
            rows = "\n".join(problem.rows[:NUM_SHOWN]) + ("\n…" if num_rows > NUM_SHOWN else "")
            fix = f"{problem.first.fix} (--fixed does it.)" if problem.num_mended else problem.first.fix
            said = Text.assemble(problem.first.problem, "\n", (fix, "green"))
            table.add_row(Text(problem.kind), str(num_rows), Text(rows), said)
        console.print(table)
    num_bad = tally.num_bad + tally.num_mended
    kept = tally.num_rows - tally.num_bad
    lines = [
        f"{tally.num_rows} rows: {tally.num_rows - num_bad} good, {num_bad} bad, {tally.num_mended} can be mended."
    ]
    if order.fixed is not None:
        lines.append(f"{order.fixed} has {kept} rows, {tally.num_mended} of them mended; {tally.num_bad} are left out.")
    if tally.share > order.limit_share:
        lines.append(f"{tally.share:.2%} are bad: training stops above {order.limit_share:.2%}.")
    elif num_bad:
        lines.append(f"{tally.share:.2%} are bad: training leaves them out and writes them down.")
    for line in lines:
        console.print(Text(line))
