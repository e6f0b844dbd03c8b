"""How fast a model is on this machine in each precision, beside what the machine could do at most.

Every precision has a process of its own, which computes when told to: they take turns, so that whatever else the
machine does hits them alike, and what each takes in memory is its own.
"""

import multiprocessing
import os
import statistics
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascadevl.checkpoints.layouts import locate
from cascadevl.core.errors import CascadeError, ConfigError, UserError
from cascadevl.core.files import write_json
from cascadevl.core.precision import KV_FORMATS, WEIGHT_FORMATS

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from cascadevl.engine.bench import Work

DTYPES = ("auto", "float32", "bfloat16", "float16")
KV = ("auto", *KV_FORMATS)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOrder:
    """Measure a model on this machine: cascadevl bench --weights float32 int8 int4-g64 --batch 1 8

    `cascadevl bench serve --help` tells of the other form, which loads a server. Prompts are random tokens, answers
    of a fixed length; medians of rounds in which all precisions take turns. Beside each rate stands the bound it is
    measured against: bytes that must be moved over measured bandwidth, or operations over the measured rate.
    """

    model: str = "nano"
    """An embedded model, a folder, or a hub id."""
    weights: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FORMAT …")] = ("float32", "int8", "int4-g64")
    """auto (as stored), float32, bfloat16, float16; of few bits int8, int8-g64, mxfp4, fp8, fp8-blocks, int4-g32,
    int4-g64, int4-g128, these three also with -zeros; int4 is int4-g32-zeros."""
    kv: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FORMAT …")] = ("auto",)
    """Of keys and values: auto, float32, bfloat16, float16, fp8, int8 or int4."""
    batch: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N …")] = (1, 8)
    """Requests at once."""
    prompt: int = 512
    """Tokens of each prompt."""
    tokens: int = 128
    """Tokens of each answer."""
    images: int = 0
    """Pictures of a request: the tower, and the first token of such requests, are measured too."""
    tiles: int = 4
    """Most tiles of a picture."""
    threads: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N …")] = (1,)
    """Of the processor."""
    rounds: int = 5
    """Of which the median counts; one before them warms up."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write what was measured."""

    def __post_init__(self) -> None:
        for name, known in (("weights", (*DTYPES, *WEIGHT_FORMATS)), ("kv", KV)):
            for value in getattr(self, name):
                if value not in known:
                    raise ConfigError(f"{name}: {value!r} is no format we know; expected some of {', '.join(known)}.")
        for name in ("prompt", "tiles", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.tokens < 2:
            raise ConfigError(f"tokens must be at least 2, the first is not decoded; got {self.tokens}.")
        if self.images < 0:
            raise ConfigError(f"images must be at least 0, got {self.images}.")
        for name in ("weights", "kv", "batch", "threads"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name} takes values that differ, one at least; got {' '.join(map(str, values))!r}.")
        if min(self.batch) < 1:
            raise ConfigError(f"batch must be at least 1, got {min(self.batch)}.")
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if min(self.threads) < 1 or max(self.threads) > usable:
            raise ConfigError(f"threads: this process may use 1 … {usable}, got {' '.join(map(str, self.threads))}.")
        if self.json is not None and not self.json.absolute().parent.is_dir():
            raise ConfigError(f"There is no folder {self.json.absolute().parent} to write {self.json.name} in.")


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["serve"]:
        from cascadevl.cli import bench_serve

        return bench_serve.main(arguments[1:])
    order = tyro.cli(BenchOrder, prog="cascadevl bench", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    locate(order.model)
    found = measure(order)
    if order.json:
        write_json(order.json, found)
    show(found)
    return 0


def measure(order: BenchOrder) -> dict[str, Any]:
    """What --json writes: a row for each precision, batch and number of threads."""
    from cascadevl.engine.bench import Work

    works = [
        Work(batch=n, kv=kv, prompt=order.prompt, tokens=order.tokens, images=order.images, tiles=order.tiles)
        for kv in order.kv
        for n in order.batch
    ]
    rows = []
    for threads in order.threads:
        with ExitStack() as held:
            contenders = [held.enter_context(Contender(order.model, name, threads)) for name in order.weights]
            rounds = [[{w: each.ask(w) for w in works} for each in contenders] for _ in range(order.rounds + 1)]
            for number, each in enumerate(contenders):
                for work in works:
                    head = {"weights": each.weights, "kv": work.kv, "batch": work.batch, "threads": threads}
                    told = row(work, [told[number][work] for told in rounds], each.ask(work, bounds=True))
                    rows.append({**head, **told})
    settings = {name: value for name, value in asdict(order).items() if name != "json"}
    return {**settings, "rows": rows}


class Contender:
    """A process with the model in one precision."""

    def __init__(self, model: str, weights: str, threads: int) -> None:
        """Raises what loading raises."""
        self.weights = weights
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_contend, args=(theirs, model, weights, threads), daemon=True)
        # What counts threads reads this when it is imported, in the process to come.
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)
        try:
            self._process.start()
        finally:
            os.environ.pop("OMP_NUM_THREADS")
            if before is not None:
                os.environ["OMP_NUM_THREADS"] = before
        theirs.close()
        try:
            self._hear()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *why: object) -> None:
        self._process.terminate()
        self._process.join()
        self._line.close()

    def ask(self, work: "Work", *, bounds: bool = False) -> dict[str, Any]:
        """A round, or its bounds."""
        with suppress(OSError):  # why it does not listen any more, it has said, or its end says
            self._line.send((work, bounds))
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        try:
            said = self._line.recv()
        except (EOFError, OSError):
            self._process.join()
            raise ConfigError(
                f"The process with {self.weights} weights has ended ({self._process.exitcode}): is there memory for it?"
            ) from None
        if isinstance(said, Exception):
            raise said
        return said


def _contend(line: "Connection", model: str, weights: str, threads: int) -> None:
    """What such a process does."""
    import torch

    torch.set_num_threads(threads)  # our kernels read it when they are loaded

    from cascadevl.api import load
    from cascadevl.engine.bench import Bench

    try:
        few = weights in WEIGHT_FORMATS
        bench = Bench(load(model, dtype="auto" if few else weights, device="cpu", quant=weights if few else None))
        line.send({})
        while True:
            work, bounds = line.recv()
            line.send({name: _told(bound) for name, bound in bench.bounds(work).items()} if bounds else bench.run(work))
    except EOFError:  # nobody asks any more
        pass
    except CascadeError as error:
        line.send(error if isinstance(error, UserError) else RuntimeError(str(error)))


def _told(bound: Any) -> dict[str, Any]:
    return {**asdict(bound), "seconds": bound.seconds, "by": bound.by}


def row(work: "Work", rounds: Sequence[dict[str, float]], bounds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Medians of all rounds but the first, and their share of the bound."""
    median = {name: statistics.median(told[name] for told in rounds[1:]) for name in rounds[0]}
    per_token_s = median["decode_s"] * work.batch / median["decoded"]
    found: dict[str, Any] = {
        "prefill_tokens_per_s": work.batch * work.prompt / median["prefill_s"],
        "decode_tokens_per_s": work.batch / per_token_s,
        "decode_tokens_per_cpu_s": median["decoded"] / median["decode_cpu_s"] if median["decode_cpu_s"] else None,
        "ms_per_token": 1000 * per_token_s,
        "ttft_ms": 1000 * median["first_token_s"],
        # Memory that a round gave back may stay with the process: the least is what the work needs.
        "peak_mb": min(told["peak_bytes"] for told in rounds) / 1e6,
    }
    taken = {"prefill": median["prefill_s"], "decode": per_token_s}
    done: dict[str, float] = {"prefill": work.batch * work.prompt, "decode": work.batch}
    if work.images:
        found["tiles_per_s"] = median["tiles"] / median["tower_s"]
        found["pictured_ttft_ms"] = 1000 * median["pictured_first_token_s"]
        found["pictured_prompt"] = median["pictured_tokens"] / work.batch
        taken["tower"], done["tower"] = median["tower_s"], median["tiles"]
    against = {
        phase: {**bound, "per_s": done[phase] / bound["seconds"], "share": bound["seconds"] / taken[phase]}
        for phase, bound in bounds.items()
    }
    return {**found, "bounds": against, "rounds": list(rounds[1:])}


RATES = {"prefill": "prefill_tokens_per_s", "decode": "decode_tokens_per_s", "tower": "tiles_per_s"}
BY = {"operations": "ops", "bytes": "bytes"}
TITLES = {"prefill": "prefill tokens/s", "decode": "decode tokens/s", "tower": "tiles/s"}


def show(found: dict[str, Any]) -> None:
    """For people; plain where nobody sees frames."""
    framed = Console().is_terminal
    console = Console() if framed else Console(width=200)
    console.print(table(found, framed))
    for note in notes(found):
        console.print(Text(f"• {note}"))


def table(found: dict[str, Any], framed: bool) -> Table:
    """A row for each precision, each rate beside its bound."""
    phases = [phase for phase in RATES if phase in found["rows"][0]["bounds"]]
    name = f"{found['model']}: prompts of {found['prompt']} tokens, answers of {found['tokens']}"
    table = Table("threads", "weights", "kv", "batch", title=name, box=box.HEAVY_HEAD if framed else None)
    for phase in phases:
        table.add_column(TITLES[phase], justify="right")
        table.add_column("of its bound", justify="right", no_wrap=True)
    last = [("ms/token", "ms_per_token"), ("TTFT, ms", "ttft_ms"), ("peak MB", "peak_mb")]
    if "tower" in phases:
        last.insert(2, ("with pictures, ms", "pictured_ttft_ms"))
    for title, _ in last:
        table.add_column(title, justify="right")
    for told in found["rows"]:
        cells = [str(told[name]) for name in ("threads", "weights", "kv", "batch")]
        for phase in phases:
            bound = told["bounds"][phase]
            against = f"{bound['share']:.0%} of {bound['per_s']:,.0f} ({BY[bound['by']]})"
            cells += [f"{told[RATES[phase]]:,.1f}", against]
        table.add_row(*cells, *(f"{told[name]:,.1f}" for _, name in last))
    return table


def notes(found: dict[str, Any]) -> list[str]:
    """What the table cannot say."""
    bounds = [bound for told in found["rows"] for bound in told["bounds"].values()]
    gb = sorted(bound["bytes_per_s"] / 1e9 for bound in bounds)
    gops = sorted(bound["flops_per_s"] / 1e9 for bound in bounds)
    return [
        f"Medians of {found['rounds']} rounds in which all weights of a number of threads took turns.",
        f"Bounds: bytes over {gb[0]:.1f} to {gb[-1]:.1f} GB/s, as measured for so many bytes (a cache is faster than "
        f"memory); operations over {gops[0]:.0f} to {gops[-1]:.0f} G/s, as measured for matrix products.",
        "Peak MB is the process's own, Python and torch included.",
    ]
